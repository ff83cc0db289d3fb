package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"time"
)

// A file is pseudo-random content of any size that costs next to nothing to make: one block of randomness again and
// again, with its number in front.
type file struct {
	size  int64
	block [256 << 10]byte
}

func newFile(size int64, seed uint64) *file {
	f := &file{size: size}
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	rand.NewChaCha8(s).Read(f.block[:])
	return f
}

// write writes all of f to w, unless ctx ends. It is for one goroutine at a time.
func (f *file) write(ctx context.Context, w io.Writer) error {
	for i, left := uint64(0), f.size; left > 0; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		binary.LittleEndian.PutUint64(f.block[:], i)
		n, err := w.Write(f.block[:min(int64(len(f.block)), left)])
		if err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// digest is the field that tells the digest of what is sent (RFC 9530).
const digest = "Repr-Digest"

func digestOf(sum []byte) string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":"
}

const page = "<!doctype html>\n<title>It works</title>\n<p>This page came through a WireGuard tunnel.\n"

// serve serves a page and a file on l until the server is closed. The file is hashed first, which takes a moment.
func serve(ctx context.Context, l net.Listener, f *file) (*http.Server, error) {
	sum := sha256.New()
	if err := f.write(ctx, sum); err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) })
	mux.HandleFunc("GET /file", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(f.size, 10))
		w.Header().Set(digest, digestOf(sum.Sum(nil)))
		f.write(r.Context(), w)
	})
	s := &http.Server{Handler: mux}
	go s.Serve(l)
	return s, nil
}

func get(ctx context.Context, c *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.Do(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return resp, err
}

// getPage fetches the page and returns its size.
func getPage(ctx context.Context, c *http.Client, url string) (int, error) {
	resp, err := get(ctx, c, url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && !bytes.Equal(body, []byte(page)) {
		err = fmt.Errorf("GET %s: the page is not the one that was sent", url)
	}
	return len(body), err
}

// getFile downloads the file, hashes it on the way, and checks the digest. It returns how long that took.
func getFile(ctx context.Context, c *http.Client, url string, p *progress) (sum []byte, took time.Duration, err error) {
	start := time.Now()
	resp, err := get(ctx, c, url)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	hash := sha256.New()
	p.begin(resp.ContentLength)
	n, err := io.CopyBuffer(io.MultiWriter(hash, p), resp.Body, make([]byte, 256<<10))
	took = time.Since(start)
	p.end()
	sum = hash.Sum(nil)
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("download broke off after %s: %w", bytesOf(n), err)
	case n != resp.ContentLength:
		return nil, 0, fmt.Errorf("download has %d bytes, want %d", n, resp.ContentLength)
	case digestOf(sum) != resp.Header.Get(digest):
		return nil, 0, fmt.Errorf("download has digest %s, want %s", digestOf(sum), resp.Header.Get(digest))
	}
	return sum, took, nil
}
