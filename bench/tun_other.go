//go:build !linux

package main

import (
	"errors"
	"os/exec"
)

func missingForDaemons() string { return "needs Linux: its namespaces, veth and TUN" }

var errNotLinux = errors.New(missingForDaemons())

func isolate(*exec.Cmd)    {}
func enterIsolated() error { return errNotLinux }

func runTunTCP(int) func(*stage) (sample, error) { return runTunUDP }
func runTunUDP(*stage) (sample, error)           { return sample{}, errNotLinux }
func runTunRTT(st *stage) (sample, error)        { return runTunUDP(st) }
func runTunMemory(st *stage) (sample, error)     { return runTunUDP(st) }
