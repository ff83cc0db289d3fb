package netstack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// question4 is the question that these tests ask, and server4 is the server that answers it.
var (
	question4 = question{"four.test.", dnsmessage.TypeA}
	server4   = netip.AddrPortFrom(b4, 53)
)

// answerTo returns the message with which an honest server answers q, after change has modified it.
func answerTo(q question, change func(*dnsmessage.Message)) []byte {
	m := &dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 1},
		Questions: []dnsmessage.Question{{Name: dnsName(q.name), Type: q.t, Class: dnsmessage.ClassINET}},
	}
	testZone.answer(m)
	if change != nil {
		change(m)
	}
	return packed(m, true)
}

// TestAnsweredBy checks which messages count as a response to a question.
func TestAnsweredBy(t *testing.T) {
	ask, err := newQuery(question4, true)
	if err != nil {
		t.Fatal(err)
	}
	other := dnsmessage.Question{Name: dnsName("four.test."), Type: dnsmessage.TypeAAAA, Class: dnsmessage.ClassINET}
	for _, x := range []struct {
		what   string
		change func(m *dnsmessage.Message)
		want   bool
	}{
		{"correct", func(*dnsmessage.Message) {}, true},
		{"truncated", func(m *dnsmessage.Message) { m.Truncated = true }, true},
		{"name in capitals", func(m *dnsmessage.Message) { m.Questions[0].Name = dnsName("FOUR.Test.") }, true},
		{"wrong ID", func(m *dnsmessage.Message) { m.ID++ }, false},
		{"a query", func(m *dnsmessage.Message) { m.Response = false }, false},
		{"another operation", func(m *dnsmessage.Message) { m.OpCode = 5 }, false},
		{"another name", func(m *dnsmessage.Message) { m.Questions[0].Name = dnsName("two.test.") }, false},
		{"another type", func(m *dnsmessage.Message) { m.Questions[0] = other }, false},
		{"another class", func(m *dnsmessage.Message) { m.Questions[0].Class = dnsmessage.ClassCHAOS }, false},
		{"a second question", func(m *dnsmessage.Message) { m.Questions = append(m.Questions, other) }, false},
		{"no question", func(m *dnsmessage.Message) { m.Questions = nil }, false},
		{"no question, no such name", func(m *dnsmessage.Message) { m.Questions, m.RCode = nil, dnsmessage.RCodeNameError }, false},
		{"no question, format error", func(m *dnsmessage.Message) { m.Questions, m.RCode = nil, dnsmessage.RCodeFormatError }, true},
	} {
		wire := answerTo(question4, func(m *dnsmessage.Message) {
			m.ID = ask.id
			x.change(m)
		})
		if _, got := ask.answeredBy(wire); got != x.want {
			t.Errorf("%s: answeredBy reports %t, want %t", x.what, got, x.want)
		}
	}
	for n := range 12 {
		if _, ok := ask.answeredBy(make([]byte, n)); ok {
			t.Errorf("answeredBy accepts a message of %d bytes", n)
		}
	}
}

// TestAnswerTTL checks how long each kind of answer may be kept.
func TestAnswerTTL(t *testing.T) {
	ttls := func(ttl ...uint32) func(*dnsmessage.Message) {
		return func(m *dnsmessage.Message) {
			for i, v := range ttl {
				m.Answers[i].Header.TTL = v
			}
		}
	}
	soa := func(zone string, ttl, least uint32) func(*dnsmessage.Message) {
		return func(m *dnsmessage.Message) {
			m.Authorities[0].Header.Name, m.Authorities[0].Header.TTL = dnsName(zone), ttl
			m.Authorities[0].Body.(*dnsmessage.SOAResource).MinTTL = least
		}
	}
	for _, x := range []struct {
		what, name string
		change     func(*dnsmessage.Message)
		want       time.Duration
		found      bool
	}{
		{"a record", "four.test.", ttls(60), time.Minute, true},
		{"the smaller TTL of two records", "two.test.", ttls(60, 7), 7 * time.Second, true},
		{"TTL 0", "four.test.", ttls(0), 0, true},
		{"a TTL with the sign bit", "four.test.", ttls(1 << 31), 0, true},
		{"the smaller TTL, of the alias", "alias.test.", ttls(5, 60), 5 * time.Second, true},
		{"the smaller TTL, of the record", "alias.test.", ttls(60, 5), 5 * time.Second, true},
		{"no such name", "nowhere.test.", nil, negativeTTL * time.Second, false},
		{"no such record", "empty.test.", nil, negativeTTL * time.Second, false},
		{"the SOA's TTL below its minimum", "nowhere.test.", soa("test.", 9, 30), 9 * time.Second, false},
		{"the SOA's minimum below its TTL", "nowhere.test.", soa("test.", 30, 9), 9 * time.Second, false},
		{"an SOA of the root", "nowhere.test.", soa(".", 30, 9), 9 * time.Second, false},
		{"an SOA of another zone", "nowhere.test.", soa("elsewhere.", 30, 9), 0, false},
		{"an SOA of a zone whose name is only a suffix in text", "nowhere.test.", soa("where.test.", 30, 9), 0, false},
		{"an SOA with the sign bit", "nowhere.test.", soa("test.", 1<<31, 9), 0, false},
		{"no SOA", "nowhere.test.", func(m *dnsmessage.Message) { m.Authorities = nil }, 0, false},
		{"no SOA, no such record", "empty.test.", func(m *dnsmessage.Message) { m.Authorities = nil }, 0, false},
		{"an alias to no such name", "astray.test.", ttls(7), 7 * time.Second, false},
	} {
		q := question{x.name, dnsmessage.TypeA}
		a, err := parseAnswer(q, server4, answerTo(q, x.change))
		if err != nil || a.ttl != x.want || a.found != x.found {
			t.Errorf("%s: parseAnswer returned %+v, %v; want the TTL %v and found %t", x.what, a, err, x.want, x.found)
		}
	}
}

// TestAnswerForeign checks that records of other names and types are ignored.
func TestAnswerForeign(t *testing.T) {
	foreign := []dnsmessage.Resource{
		resource("two.test.", 60, recordA("10.66.66.66")),
		resource("four.test.", 60, recordAAAA("fd66::66")),
		resource("elsewhere.test.", 60, alias("four.test.")),
	}
	chaos := resource("four.test.", 60, recordA("10.66.66.66"))
	chaos.Header.Class = dnsmessage.ClassCHAOS
	wire := answerTo(question4, func(m *dnsmessage.Message) {
		m.Answers = append(append(foreign, chaos), m.Answers...)
		m.Additionals = foreign
	})
	a, err := parseAnswer(question4, server4, wire)
	if err != nil {
		t.Fatal(err)
	}
	owner, all := records(a, (*dnsmessage.Parser).AResource)
	if owner != "four.test." || len(all) != 1 || all[0].A != b4.As4() {
		t.Errorf("%s has the addresses %v, want only its own", owner, all)
	}
}

// TestAnswerLoop checks the limit for the number of aliases in one message.
func TestAnswerLoop(t *testing.T) {
	for n, want := range map[int]error{maxAliases - 1: nil, maxAliases: errAliasLoop} {
		q := question{chained(0), dnsmessage.TypeA}
		wire := answerTo(q, func(m *dnsmessage.Message) {
			m.RCode, m.Authorities = dnsmessage.RCodeSuccess, nil
			for i := range n {
				m.Answers = append(m.Answers, resource(chained(i), 60, alias(chained(i+1))))
			}
			m.Answers = append(m.Answers, resource(chained(n), 60, recordA("10.8.0.2")))
			slices.Reverse(m.Answers) // a server may send the records in any order
		})
		if a, err := parseAnswer(q, server4, wire); err != want || err == nil && a.owner != chained(n) {
			t.Errorf("%d aliases: parseAnswer returned %+v and the error %v, want the error %v", n, a, err, want)
		}
	}
}

func chained(i int) string { return fmt.Sprintf("n%d.test.", i) }

// FuzzAnswer passes arbitrary bytes as a server's answer to parseAnswer, and checks the result.
func FuzzAnswer(f *testing.F) {
	types := []dnsmessage.Type{
		dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeCNAME, dnsmessage.TypeTXT, dnsmessage.TypeSRV, dnsmessage.TypeMX,
		dnsmessage.TypePTR, dnsmessage.TypeNS, dnsmessage.TypeHINFO,
	}
	for i, t := range types {
		for name := range testZone {
			f.Add(byte(i), name, answerTo(question{name, t}, nil))
		}
	}
	f.Fuzz(func(t *testing.T, kind byte, name string, wire []byte) {
		q := question{lower(name), types[int(kind)%len(types)]}
		ask, err := newQuery(q, true)
		if err != nil || !validName(name) || q.name[len(q.name)-1] != '.' {
			return
		}
		if len(wire) >= 2 {
			ask.id = binary.BigEndian.Uint16(wire)
		}
		sent := bytes.Clone(wire)
		if _, ok := ask.answeredBy(wire); !ok {
			return
		}
		a, err := parseAnswer(q, server4, wire)
		if err != nil {
			return
		}
		if !bytes.Equal(wire, sent) {
			t.Fatal("answeredBy or parseAnswer changed the message")
		}
		checkAnswer(t, a)
		_ = a.authority()
		owner := dnsName(q.name)
		if _, err := a.resources(owner); err != nil {
			t.Errorf("%+v: resources returned the error %v", a, err)
		}
	})
}

// checkAnswer checks the properties that each answer of parseAnswer has.
func checkAnswer(t *testing.T, a *answer) {
	t.Helper()
	count := 0
	switch a.t {
	case dnsmessage.TypeA:
		count = countRecords(a, (*dnsmessage.Parser).AResource)
	case dnsmessage.TypeAAAA:
		count = countRecords(a, (*dnsmessage.Parser).AAAAResource)
	case dnsmessage.TypeCNAME:
		count = countRecords(a, (*dnsmessage.Parser).CNAMEResource)
	case dnsmessage.TypeTXT:
		count = countRecords(a, (*dnsmessage.Parser).TXTResource)
	case dnsmessage.TypeSRV:
		count = countRecords(a, (*dnsmessage.Parser).SRVResource)
	case dnsmessage.TypeMX:
		count = countRecords(a, (*dnsmessage.Parser).MXResource)
	case dnsmessage.TypePTR:
		count = countRecords(a, (*dnsmessage.Parser).PTRResource)
	case dnsmessage.TypeNS:
		count = countRecords(a, (*dnsmessage.Parser).NSResource)
	default:
		count = countRecords(a, (*dnsmessage.Parser).UnknownResource)
	}
	if a.found && count == 0 || a.found && (a.noName || a.next != "") {
		t.Errorf("%+v: found is set, but %d records can be read, or noName or next is set too", a, count)
	}
	if a.next != "" && (a.next != a.owner || a.next == a.name) {
		t.Errorf("%+v: next is not the name to which the aliases lead", a)
	}
	if a.ttl < 0 || a.ttl > maxTTL*time.Second {
		t.Errorf("%+v: the TTL is out of range", a)
	}
}

func countRecords[T any](a *answer, read func(*dnsmessage.Parser) (T, error)) int {
	_, all := records(a, read)
	return len(all)
}
