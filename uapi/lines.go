package uapi

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

const (
	maxLine    = 512      // the longest line in bytes; the longest valid line has about 100
	maxRequest = 64 << 20 // the default limit, in bytes, of all requests that are being read; 65,000 allowed IPs take about 2 << 20
	readBuffer = 4096     // bytes; a bufio.Reader of at least this size gets no second buffer
)

// errEnd means that the input ended where a line should begin.
var errEnd = errors.New("the input ends before the empty line that ends a request")

// A lineReader reads the lines of one request. It adds the length of the lines to inUse, a counter that several requests share.
// The method done subtracts this length again.
type lineReader struct {
	r     *bufio.Reader
	inUse *atomic.Int64
	limit int64 // the largest valid value of *inUse
	bytes int64
	n     int  // the number of the line that next read last, from 1
	cut   bool // whether r is in the middle of a line
	ended bool // whether the empty line was read
}

// next returns the next line without its line ending, which is LF or CR LF. The line is valid until the next call. It is empty at
// the end of the request. At the end of the input the error wraps errEnd.
func (l *lineReader) next() ([]byte, error) {
	l.n++
	line, err := l.r.ReadSlice('\n')
	l.cut = err == bufio.ErrBufferFull
	switch {
	case err == io.EOF && len(line) == 0:
		return nil, &Error{errnoIO, errEnd}
	case len(line) > maxLine:
		return nil, l.errorf(errnoProtocol, "the line is longer than %d bytes", maxLine)
	case err != nil && err != io.EOF:
		return nil, &Error{errnoIO, fmt.Errorf("read the request: %w", err)}
	}
	l.bytes += int64(len(line))
	if l.inUse.Add(int64(len(line))) > l.limit {
		return nil, l.errorf(errnoTooBig, "more than %d bytes of requests are being read: send less at a time", l.limit)
	}
	if err == nil {
		line = bytes.TrimSuffix(line[:len(line)-1], []byte("\r"))
		l.ended = len(line) == 0
	}
	return line, nil
}

// skip reads and discards the rest of a refused request. It fails only if reading fails.
func (l *lineReader) skip() error {
	for !l.ended {
		line, err := l.r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return err
		}
		l.ended = !l.cut && err == nil && (string(line) == "\n" || string(line) == "\r\n")
		l.cut = err != nil
	}
	return nil
}

// done subtracts the counted bytes from inUse.
func (l *lineReader) done() {
	l.inUse.Add(-l.bytes)
	l.bytes = 0
}

// errorf returns an error about this line. Do not pass it a value of the request, which may be a secret.
func (l *lineReader) errorf(errno int, format string, args ...any) error {
	return &Error{errno, fmt.Errorf("line %d: %w", l.n, fmt.Errorf(format, args...))}
}
