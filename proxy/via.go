package proxy

import (
	"fmt"
	"net/http"
	"strings"
)

const defaultPseudonym = "proxy"

// notToken reports whether a character cannot be part of a token (RFC 9110, section 5.6.2).
func notToken(c rune) bool {
	return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("!#$%&'*+-.^_`|~", c))
}

// via adds a Via field to the header of a request or response. major and minor are the HTTP version with which it arrived. "A
// proxy MUST send an appropriate Via header field, as described below, in each message that it forwards" (RFC 9110, section
// 7.6.3).
func (w *web) via(head http.Header, major, minor int) {
	head.Add("Via", fmt.Sprintf("%d.%d %s", major, minor, w.Pseudonym))
}
