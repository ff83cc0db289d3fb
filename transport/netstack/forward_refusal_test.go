package netstack

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
)

// TestRefusalOf checks that RefusalOf returns the right Refusal for each error of a dial.
func TestRefusalOf(t *testing.T) {
	dial := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	for _, c := range []struct {
		err  error
		want Refusal
	}{
		{dial(syscall.ECONNREFUSED), PortUnreachable},
		{dial(syscall.ECONNRESET), PortUnreachable},
		{dial(syscall.ENETUNREACH), NetUnreachable},
		{dial(syscall.EADDRNOTAVAIL), NetUnreachable},
		{dial(syscall.EHOSTUNREACH), HostUnreachable},
		{dial(syscall.ETIMEDOUT), HostUnreachable},
		{dial(syscall.EACCES), Prohibited},
		{dial(syscall.EPERM), Prohibited},
		{context.DeadlineExceeded, HostUnreachable},
		{net.UnknownNetworkError("ping"), HostUnreachable},
		{errors.New("other"), HostUnreachable},
	} {
		if got := RefusalOf(c.err); got != c.want {
			t.Errorf("RefusalOf(%v) is %d, want %d", c.err, got, c.want)
		}
	}
}
