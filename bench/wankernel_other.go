//go:build !linux

package main

import "errors"

func missingForKernel() string { return "needs Linux's network namespaces" }

func joinKernels(*stage, wanCell) (*wanPath, error) { return nil, errors.New(missingForKernel()) }
