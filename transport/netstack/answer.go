package netstack

import (
	"errors"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A question is a name and a record type that a DNS server is asked for. The name is complete, in lower case, and ends in a
// dot.
type question struct {
	name string
	t    dnsmessage.Type
}

// An answer is a usable answer of a server to a question. It may also say that there is no such record. It is immutable.
//
// An answer keeps the message as received, and each lookup reads the records from the message. Parsed records of a hostile
// message would take a hundred times the memory of the message.
type answer struct {
	question
	server netip.AddrPort
	wire   []byte        // the whole message
	owner  string        // the name to which the aliases lead, in lower case; it owns the records
	found  bool          // the message has records of the question's type
	noName bool          // owner does not exist
	next   string        // the name to which the aliases lead, if the message says nothing about that name; otherwise ""
	ttl    time.Duration // how long the answer may be kept; 0 means not at all
}

// A message must have fewer than maxAliases CNAME records between a name and its other records.
const maxAliases = 16

// The reasons why an answer is not usable. A server that gives such an answer has failed, and the resolver asks the next server.
var (
	errMalformed = errors.New("malformed answer")
	errLame      = errors.New("lame answer, which refers to other servers")
	errAliasLoop = errors.New("CNAME records that form a loop")
)

const servfail = rcodeError(dnsmessage.RCodeServerFailure)

// An rcodeError is the response code of an answer that says that the server failed.
type rcodeError dnsmessage.RCode

func (e rcodeError) Error() string {
	switch dnsmessage.RCode(e) {
	case dnsmessage.RCodeFormatError:
		return "FORMERR"
	case dnsmessage.RCodeServerFailure:
		return "SERVFAIL"
	case dnsmessage.RCodeNotImplemented:
		return "NOTIMP"
	case dnsmessage.RCodeRefused:
		return "REFUSED"
	}
	return "RCODE " + strconv.Itoa(int(e))
}

// parseAnswer parses the DNS message in wire, and returns what it says about q. The caller has checked that wire is a response
// to q, and must not use wire afterwards. The error says why the answer is not usable.
func parseAnswer(q question, server netip.AddrPort, wire []byte) (*answer, error) {
	a := &answer{question: q, server: server, wire: wire, owner: q.name}
	var p dnsmessage.Parser
	h, err := p.Start(wire)
	if err != nil {
		return nil, errMalformed
	}
	rcode := h.RCode | extendedRCode(wire)
	if rcode != dnsmessage.RCodeSuccess && rcode != dnsmessage.RCodeNameError {
		return nil, rcodeError(rcode)
	}
	a.noName = rcode == dnsmessage.RCodeNameError
	ttl := uint32(maxTTL)
	if q.t != dnsmessage.TypeCNAME {
		if ttl, err = a.followAliases(); err != nil {
			return nil, err
		}
	}
	if !a.noName {
		records, err := a.check()
		if err != nil {
			return nil, err
		}
		if a.found = records.any; a.found {
			a.ttl = seconds(min(ttl, records.ttl))
			return a, nil
		}
	}
	s := a.authority()
	if !a.noName && !s.soa {
		// RFC 2308, section 2.2: a referral has NS records and no SOA record in its authority section. The Net's name servers
		// must recurse, and a server that recurses has no reason to send a referral.
		if lame := s.ns || !h.RecursionAvailable; lame && !h.Authoritative && a.owner == a.name {
			return nil, errLame
		}
		if a.owner != a.name {
			a.next, a.ttl = a.owner, seconds(ttl)
			return a, nil
		}
	}
	a.ttl = seconds(min(ttl, s.ttl))
	return a, nil
}

// maxTTL is the largest TTL (RFC 2181, section 8).
const maxTTL = 1<<31 - 1

// cleanTTL returns ttl, or 0 if it is too large. "If a TTL has its most significant bit set, treat the entire value as
// zero" (RFC 2181, section 8).
func cleanTTL(ttl uint32) uint32 {
	if ttl > maxTTL {
		return 0
	}
	return ttl
}

func seconds(ttl uint32) time.Duration { return time.Duration(ttl) * time.Second }

// eachRecord calls visit with the header of each record of class IN in the answer section. visit must return true if it has
// read the record from the parser. If visit returns false, eachRecord skips the record.
func (a *answer) eachRecord(visit func(h *dnsmessage.ResourceHeader, p *dnsmessage.Parser) (read bool, err error)) error {
	var p dnsmessage.Parser
	if _, err := p.Start(a.wire); err != nil {
		return errMalformed
	}
	if err := p.SkipAllQuestions(); err != nil {
		return errMalformed
	}
	for {
		h, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			return nil
		}
		if err != nil {
			return errMalformed
		}
		read := false
		if h.Class == dnsmessage.ClassINET {
			if read, err = visit(&h, &p); err != nil {
				return errMalformed
			}
		}
		if !read {
			if err := p.SkipAnswer(); err != nil {
				return errMalformed
			}
		}
	}
}

// followAliases follows the CNAME records that begin at a.name. It sets a.owner to the name to which they lead, and returns
// their smallest TTL.
func (a *answer) followAliases() (ttl uint32, err error) {
	type alias struct {
		to  string
		ttl uint32
	}
	var aliases map[string]alias
	err = a.eachRecord(func(h *dnsmessage.ResourceHeader, p *dnsmessage.Parser) (bool, error) {
		if h.Type != dnsmessage.TypeCNAME {
			return false, nil
		}
		c, err := p.CNAMEResource()
		if err != nil {
			return false, err
		}
		if aliases == nil {
			aliases = make(map[string]alias)
		}
		if from := lower(h.Name.String()); aliases[from].to == "" {
			aliases[from] = alias{lower(c.CNAME.String()), h.TTL}
		}
		return true, nil
	})
	if err != nil {
		return 0, err
	}
	ttl = maxTTL
	for range maxAliases {
		to, ok := aliases[a.owner]
		if !ok {
			return ttl, nil
		}
		a.owner, ttl = to.to, min(ttl, cleanTTL(to.ttl))
	}
	return 0, errAliasLoop
}

type recordsFound struct {
	any bool
	ttl uint32 // the smallest TTL of the records found, in seconds
}

// check reads all records that a lookup may read later, and reports what it found. A record that cannot be read makes the
// whole answer unusable.
func (a *answer) check() (f recordsFound, err error) {
	f.ttl = maxTTL
	err = a.eachRecord(func(h *dnsmessage.ResourceHeader, p *dnsmessage.Parser) (bool, error) {
		if h.Type != a.t || lower(h.Name.String()) != a.owner {
			return false, nil
		}
		f.any, f.ttl = true, min(f.ttl, cleanTTL(h.TTL))
		return true, checkRecord(h, p)
	})
	return f, err
}

func checkRecord(h *dnsmessage.ResourceHeader, p *dnsmessage.Parser) error {
	var err error
	switch want := int(h.Length); h.Type {
	case dnsmessage.TypeA:
		_, err = p.AResource()
		if want != 4 {
			return errMalformed
		}
	case dnsmessage.TypeAAAA:
		_, err = p.AAAAResource()
		if want != 16 {
			return errMalformed
		}
	case dnsmessage.TypeCNAME:
		_, err = p.CNAMEResource()
	case dnsmessage.TypeTXT:
		_, err = p.TXTResource()
	case dnsmessage.TypeSRV:
		_, err = p.SRVResource()
	case dnsmessage.TypeMX:
		_, err = p.MXResource()
	case dnsmessage.TypePTR:
		_, err = p.PTRResource()
	case dnsmessage.TypeNS:
		_, err = p.NSResource()
	default:
		_, err = p.UnknownResource()
	}
	return err
}

// records returns all records of the question's type in the answer a. It calls read to read each record from the parser: for a
// question of type A, read is (*dnsmessage.Parser).AResource. It also returns the name that owns the records, as the server
// spelled it.
func records[T any](a *answer, read func(*dnsmessage.Parser) (T, error)) (owner string, all []T) {
	// check has read the same records without an error, so eachRecord returns none.
	_ = a.eachRecord(func(h *dnsmessage.ResourceHeader, p *dnsmessage.Parser) (bool, error) {
		if h.Type != a.t {
			return false, nil
		}
		name := h.Name.String()
		if lower(name) != a.owner {
			return false, nil
		}
		r, err := read(p)
		if err != nil {
			return false, err
		}
		owner, all = name, append(all, r)
		return true, nil
	})
	return owner, all
}

type authoritySection struct {
	soa, ns bool
	ttl     uint32 // how long a negative answer may be kept, in seconds; 0 means unknown
}

// authority returns what the authority section of the message says about records that do not exist. If a part of the section cannot
// be read, authority ignores that part and the rest.
func (a *answer) authority() (s authoritySection) {
	var p dnsmessage.Parser
	if _, err := p.Start(a.wire); err != nil || p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil {
		return s
	}
	for {
		h, err := p.AuthorityHeader()
		if err != nil {
			return s
		}
		switch h.Type {
		case dnsmessage.TypeNS:
			s.ns = true
		case dnsmessage.TypeSOA:
			soa, err := p.SOAResource()
			if err != nil {
				return s
			}
			// "The TTL of this record is set from the minimum of the MINIMUM field of the SOA record and the TTL of
			// the SOA itself" (RFC 2308, section 3).
			if within(a.owner, lower(h.Name.String())) {
				s.soa, s.ttl = true, min(cleanTTL(h.TTL), cleanTTL(soa.MinTTL))
			}
			continue
		}
		if p.SkipAuthority() != nil {
			return s
		}
	}
}

// within reports whether name, a domain name, is in zone. Both are complete and in lower case.
func within(name, zone string) bool {
	if zone == "." || name == zone {
		return true
	}
	cut := len(name) - len(zone)
	return cut > 0 && name[cut-1] == '.' && name[cut:] == zone
}

// extendedRCode returns the upper bits of the message's response code, which are in its OPT record (RFC 6891, section
// 6.1.3).
func extendedRCode(wire []byte) dnsmessage.RCode {
	var p dnsmessage.Parser
	if _, err := p.Start(wire); err != nil || p.SkipAllQuestions() != nil || p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return 0
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return 0
		}
		if h.Type == dnsmessage.TypeOPT {
			return h.ExtendedRCode(0)
		}
		if p.SkipAdditional() != nil {
			return 0
		}
	}
}

// specialAnswer returns the Net's own answer to q if no server may be asked for the name in q. Otherwise, it returns nil.
func specialAnswer(q question) *answer {
	use := nameUseOf(q.name)
	if use == ordinary {
		return nil
	}
	a := &answer{question: q, owner: q.name, noName: use == notExists}
	name, err := dnsmessage.NewName(q.name)
	if err != nil {
		return a
	}
	h := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET}
	var m dnsmessage.Message
	switch {
	case use == loopback && q.t == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
	case use == loopback && q.t == dnsmessage.TypeAAAA:
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AAAAResource{AAAA: netip.IPv6Loopback().As16()}}}
	}
	if a.wire, err = m.Pack(); err == nil {
		a.found = len(m.Answers) > 0
	}
	return a
}
