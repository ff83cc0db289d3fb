//go:build unix

package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/seed-86b749af/wireguard/transport/tun"
	"github.com/seed-86b749af/wireguard/transport/udp"
)

const (
	envOffload = "WG0_OFFLOAD"
	envQueues  = "WG0_QUEUES"

	maxQueues = 256 // the limit of Linux
)

// options say how packets are passed between this process and the kernel.
type options struct {
	noOffload bool
	queues    int // 0 means that the environment does not say
}

// readOptions reads the options from the environment.
func readOptions() (o options, err error) {
	switch v := os.Getenv(envOffload); v {
	case "", "1":
	case "0":
		o.noOffload = true
	default:
		return o, fmt.Errorf("%s is %q: want 0 or 1", envOffload, v)
	}
	if v := os.Getenv(envQueues); v != "" {
		if o.queues, err = strconv.Atoi(v); err != nil || o.queues < 1 || o.queues > maxQueues {
			return o, fmt.Errorf("%s is %q: want a number from 1 to %d", envQueues, v, maxQueues)
		}
	}
	return o, nil
}

func (o options) tun(name string, in inherited) (tun.Config, error) {
	if o.queues > 1 && in.tun != nil {
		return tun.Config{}, fmt.Errorf("%s is %d, but an inherited interface has one queue; unset the variable", envQueues, o.queues)
	}
	return tun.Config{Name: name, File: in.tun, Queues: o.queues, NoOffload: o.noOffload}, nil
}

func (o options) bind() *udp.Bind { return &udp.Bind{NoOffload: o.noOffload} }
