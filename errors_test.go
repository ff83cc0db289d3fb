package wireguard

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-86b749af/wireguard/internal/testkit"
)

// errForeign is the error that a broken Tunnel or Bind returns. Its text already has the prefix "wireguard: ".
var errForeign = errors.New("wireguard: foreign: broken")

// A broken is both a Tunnel and a Bind. One of its methods, or of its Socket's methods, fails: the field call has the name of
// this method.
type broken struct {
	*drain
	*line
	call string
}

func (b *broken) fails(call string) error {
	if b.call == call {
		return errForeign
	}
	return nil
}
func (b *broken) Close() error { b.drain.Close(); return b.fails("Close") }
func (b *broken) ReadPackets(batch *Batch) error {
	if err := b.fails("ReadPackets"); err != nil {
		return err
	}
	return b.drain.ReadPackets(batch)
}
func (b *broken) Listen(port uint16) (Socket, error) {
	s, err := b.line.Listen(port)
	return brokenSocket{s, b}, errors.Join(err, b.fails("Listen"))
}

type brokenSocket struct {
	Socket
	b *broken
}

func (s brokenSocket) SetMark(uint32) error { return s.b.fails("SetMark") }
func (s brokenSocket) Send(ts []Train) {
	for i := range ts {
		ts[i].Err = s.b.fails("Send")
	}
}

// newBroken makes a device with one peer. Its Tunnel and its Bind are a value of type broken. The parameter call is the name of
// the method that fails.
func newBroken(t *testing.T, call string) *Device {
	b := &broken{newDrain(), newLine(), call}
	d, err := New(Config{PrivateKey: testKey(1), Tunnel: b, Bind: b, Peers: []PeerConfig{newRemote(2, PublicKey{}).config()}, FirewallMark: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// A mute is both a Tunnel that implements no interface for reading packets, and a Bind with an invalid headroom.
type mute struct{ PacketSink }

func (mute) MTU() int                      { return 0 }
func (mute) Close() error                  { return nil }
func (mute) Headroom() int                 { return -1 }
func (mute) Listen(uint16) (Socket, error) { return nil, nil }

// returned returns one error for each error text in the package, as a caller gets it, together with the sentinel errors that it
// wraps.
func returned(t *testing.T) (all []returnedError) {
	add := func(err error, is ...error) { all = append(all, returnedError{err, is}) }
	second := func(_ any, err error) error { return err }

	// These errors are about configurations.
	add(second(New(Config{StagedBytes: -1, MaxLookedUp: -1, IndexPrefix: IndexPrefix{Bits: 17}})))
	key, prefixes := newRemote(2, PublicKey{}).id.public, []netip.Prefix{
		{}, netip.MustParsePrefix("::ffff:10.0.0.0/104")}
	at := func(s string) Endpoint { return EndpointOf(netip.MustParseAddrPort(s)) }
	add(second(New(Config{PrivateKey: testKey(1), Tunnel: mute{}, Bind: mute{}, Peers: []PeerConfig{
		{}, {PublicKey: testKey(1).Public()}, {PublicKey: key, PersistentKeepalive: -1}, {PublicKey: key, MTU: 1}, {PublicKey: key, Endpoint: at("192.0.2.1:0")},
		{PublicKey: key, Endpoint: at("224.0.0.1:1"), AllowedIPs: prefixes},
	}})))

	// These errors are about the text forms and binary forms of values.
	add(second(ParseEndpoint("x")))
	add(second(ParseEndpoint("192.0.2.1:0")))
	add(second(Endpoint{Interface: 1}.MarshalText()))
	add(second(ParsePublicKey("x")))
	add(second(ParsePrivateKey(strings.Repeat("!", 44))))
	add(second(PrivateKey{}.MarshalText()))
	add(new(PresharedKey).UnmarshalBinary(nil))
	add(new(Timestamp).UnmarshalText([]byte("x")))
	add(second(EventKind(200).MarshalText()))
	add(new(DropReason).UnmarshalText([]byte("x")))

	// These errors are about devices and subscriptions that are down or closed.
	d := newBroken(t, "")
	add(d.Send(d.NewBatch()), ErrDown)
	sub := d.Subscribe()
	sub.Close()
	add(second(sub.Next(t.Context())), net.ErrClosed)
	d.Close()
	add(d.Up(), net.ErrClosed)
	add(d.Send(d.NewBatch()), net.ErrClosed)
	add(d.Configure(Change{}), net.ErrClosed)
	add(newBroken(t, "Listen").Up(), errForeign)
	add(newBroken(t, "SetMark").Up(), errForeign)
	e := newEnd(t, testKey(1))
	e.Configure(Change{FirewallMark: new(uint32(7))})
	add(e.Up(), errors.ErrUnsupported)
	add(newBroken(t, "Close").Close(), errForeign)
	d = newBroken(t, "ReadPackets")
	d.Up()
	<-d.Done()
	add(d.Err(), errForeign)

	// These are errors of Handshake and Renew. TestHandshakeEndings has all outcomes of these methods.
	for _, wait := range []func(*Device, context.Context, PublicKey) error{(*Device).Handshake, (*Device).Renew} {
		d := newBroken(t, "Send")
		add(wait(d, t.Context(), key), ErrDown)
		add(wait(d, t.Context(), PublicKey{}), ErrNoPeer)
		d.Up()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for p := d.peers.Find(key); !failedToSend(p); {
				time.Sleep(time.Millisecond)
			}
			cancel()
		}()
		add(wait(d, ctx, key), context.Canceled, errForeign)
		d.Configure(Change{Peers: []PeerChange{{PublicKey: key, Endpoint: &Endpoint{}}}})
		add(wait(d, t.Context(), key), ErrNoEndpoint)
		d.Configure(Change{PrivateKey: &PrivateKey{}})
		add(wait(d, t.Context(), key), ErrNoPrivateKey)
	}
	for want, set := range map[error]func(*peer){
		ErrNoAnswer: func(*peer) {},
		errUnopened: func(p *peer) { p.unopened = true },
		errForeign:  func(p *peer) { p.noteSend(&p.endpoint, errForeign) },
	} {
		p, waits := newPeer(key), wish{news: make(chan error, 1)}
		set(p)
		p.waits = &waits
		d.publish(p, []outEvent{{kind: EventHandshakeFailed}})
		add(p.attemptError(), want)        // the error of an event
		p.unopened, p.sendErr = false, nil // as if the next attempt began before the caller read the error
		add(errorf("renew the session with %v: %w", key, <-waits.news), ErrNoAnswer, want)
	}
	return all
}

// TestSendErrors checks that the error of a failed send names the endpoint to which the message went, and does not change when a
// later message fails. While messages keep failing, noteSend allocates nothing.
func TestSendErrors(t *testing.T) {
	old, now := EndpointOf(netip.MustParseAddrPort("192.0.2.1:1")), EndpointOf(netip.MustParseAddrPort("192.0.2.2:2"))
	p := newPeer(testKey(1).Public())
	p.endpoint = now
	p.noteSend(&old, syscall.ENOBUFS)
	first := p.attemptError()
	p.noteSend(&now, syscall.EHOSTUNREACH)
	p.noteSend(&now, net.ErrClosed)
	if !errors.Is(first, syscall.ENOBUFS) || !strings.Contains(first.Error(), old.String()) {
		t.Errorf("the first error is %v, want %v with the endpoint %v", first, syscall.ENOBUFS, old)
	}
	if err := p.attemptError(); !errors.Is(err, syscall.EHOSTUNREACH) || !strings.Contains(err.Error(), now.String()) {
		t.Errorf("the second error is %v, want %v with the endpoint %v", err, syscall.EHOSTUNREACH, now)
	}
	testkit.NoAllocations(t, 100, func() { p.noteSend(&now, syscall.ENOBUFS) })
	if p.noteSend(&now, nil); p.attemptError() != ErrNoAnswer {
		t.Errorf("after a message was sent, the error is %v, want %v", p.attemptError(), ErrNoAnswer)
	}
}

func failedToSend(p *peer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sendErr != nil
}

type returnedError struct {
	error
	is []error
}

// TestErrorTexts checks that each line of each error that this package returns has the prefix "wireguard: " exactly once, and
// that the error wraps the sentinel errors for which a program may test. It also fails if the source contains an error text that
// none of the tested errors has.
func TestErrorTexts(t *testing.T) {
	testkit.ReadsSources(t)
	sentinels := []error{ErrDown, ErrNoPeer, ErrNoEndpoint, ErrNoPrivateKey, ErrNoAnswer, net.ErrClosed, errors.ErrUnsupported,
		context.Canceled, errForeign, errUnopened}
	source, made := sourceTexts(t), make(map[string]bool)
	for _, r := range returned(t) {
		if r.error == nil {
			t.Error("one of the calls in returned succeeded, want an error from each")
			continue
		}
		for line := range strings.Lines(r.Error()) {
			text, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "wireguard: ")
			if !ok || strings.Contains(text, "wireguard: ") {
				t.Errorf("%q does not have the prefix \"wireguard: \" exactly once", line)
			}
			for _, at := range regexp.MustCompile("^|: |; ").FindAllStringIndex(text, -1) {
				made[source.find(text[at[1]:])] = true
			}
		}
		for _, s := range sentinels {
			if got := errors.Is(r.error, s); got != slices.Contains(r.is, s) {
				t.Errorf("errors.Is(%q, %q) is %v, want %v", r, s, got, !got)
			}
		}
	}
	for text, s := range source {
		if !made[text] {
			t.Errorf("%s: none of the calls in returned makes an error with the text %q", s.at, text)
		}
	}
}

// errorTexts are the texts of errors (format strings), as they are in the source.
type errorTexts map[string]sourceText

type sourceText struct {
	at       token.Position
	pattern  *regexp.Regexp
	literals int // number of characters besides the formatting verbs
}

// find returns the text (format string) from which the error text s was made. If several format strings match, it returns the one
// with the most literal characters.
func (texts errorTexts) find(s string) (found string) {
	for text, x := range texts {
		if x.pattern.MatchString(s) && (found == "" || x.literals > texts[found].literals) {
			found = text
		}
	}
	return found
}

var verb = regexp.MustCompile(`%#?[a-zA-Z]`)

// add adds a string literal of the source. If open is set, the source appends more text to the literal, so the error only begins
// with it.
func (texts errorTexts) add(at token.Position, lit *ast.BasicLit, open bool) {
	text, err := strconv.Unquote(lit.Value)
	s := strings.TrimPrefix(text, "wireguard: ")
	if _, twice := texts[text]; err != nil || s == "" || twice {
		return
	}
	pattern := "^" + verb.ReplaceAllStringFunc(regexp.QuoteMeta(s), func(verb string) string {
		switch verb {
		case "%d":
			return "-?[0-9]+"
		case "%q":
			return `".*"`
		}
		return ".*"
	})
	if !open {
		pattern += "$"
	}
	texts[text] = sourceText{at, regexp.MustCompile(pattern), len(verb.ReplaceAllString(s, ""))}
}

// sourceTexts returns the texts of errors in the source. These are the first argument of each function that makes an error, each
// string with the prefix "wireguard: " that is not in a panic, and each string in a method Error.
func sourceTexts(t *testing.T) errorTexts {
	fset, files := rootFiles(t)
	for _, name := range []string{"endpoint", "forms", "label"} { // this package returns errors of these files unchanged
		name = "internal/forms/" + name + ".go"
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = f
	}
	texts := make(errorTexts)
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			all := false // whether each string literal in n is the text of an error
			switch x := n.(type) {
			case *ast.BasicLit:
				all = strings.HasPrefix(x.Value, `"wireguard: `)
			case *ast.FuncDecl:
				all = x.Name.Name == "Error" && x.Recv != nil
			case *ast.CallExpr:
				switch types.ExprString(x.Fun) {
				case "errors.New", "fmt.Errorf", "errorf", "wrong":
					n, all = x.Args[0], true
				case "panic":
					return false
				}
			}
			if all {
				_, open := n.(*ast.BinaryExpr)
				ast.Inspect(n, func(n ast.Node) bool {
					if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
						texts.add(fset.Position(lit.Pos()), lit, open)
					}
					return true
				})
			}
			return true
		})
	}
	if len(texts) < 40 {
		t.Fatalf("%d error texts were found, want at least 40", len(texts))
	}
	return texts
}

// TestErrorsKeepTheirChain checks that no package hides an error from errors.Is. If the text of an error contains another error,
// the code must wrap that error, or a comment on the same line must say why it is not wrapped. An error type with a field for
// another error must have a method Unwrap or Is.
func TestErrorsKeepTheirChain(t *testing.T) {
	testkit.ReadsSources(t)
	seen := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() && (name == "internal" || name == "bench") {
			return fs.SkipDir // only tests and terminals show the errors of these packages
		}
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		explained := make(map[int]bool) // the lines with a comment that says why an error is not wrapped
		for _, c := range f.Comments {
			explained[fset.Position(c.Pos()).Line] = strings.Contains(c.Text(), "not wrapped")
		}
		methods, holders := make(map[string]bool), make(map[string]token.Pos)
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if !strings.HasSuffix(strings.ToLower(types.ExprString(n.Fun)), "errorf") {
					return true
				}
				seen++
				if at := fset.Position(n.Pos()); unwrapped(n) && !explained[at.Line] {
					t.Errorf("%s: an error is not wrapped: want %%w, or a comment that says why it is not wrapped", at)
				}
			case *ast.FuncDecl:
				if n.Recv != nil {
					methods[strings.TrimPrefix(types.ExprString(n.Recv.List[0].Type), "*")+"."+n.Name.Name] = true
				}
			case *ast.TypeSpec:
				if s, ok := n.Type.(*ast.StructType); ok && slices.ContainsFunc(s.Fields.List, func(f *ast.Field) bool {
					return types.ExprString(f.Type) == "error"
				}) {
					holders[n.Name.Name] = n.Pos()
				}
			}
			return true
		})
		for name, pos := range holders {
			if methods[name+".Error"] && !methods[name+".Unwrap"] && !methods[name+".Is"] {
				t.Errorf("%s: %s is an error with a field for another error, but has no method Unwrap or Is", fset.Position(pos), name)
			}
		}
		return nil
	})
	if err != nil || seen < 100 {
		t.Fatalf("%d calls of Errorf were checked, want at least 100 (error %v)", seen, err)
	}
}

// unwrapped reports whether call formats an error with a verb other than %w. It recognizes an error by the name of its variable
// or field.
func unwrapped(call *ast.CallExpr) bool {
	for i, arg := range call.Args {
		lit, ok := arg.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			continue
		}
		verbs := verb.FindAllString(strings.ReplaceAll(lit.Value, "%%", ""), -1)
		for j, arg := range call.Args[i+1:] {
			name := types.ExprString(arg)
			name = name[strings.LastIndex(name, ".")+1:]
			if slices.Contains([]string{"err", "Err", "cause"}, name) && (j >= len(verbs) || verbs[j] != "%w") {
				return true
			}
		}
		break
	}
	return false
}
