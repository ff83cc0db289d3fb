package netstack

import (
	"context"
	"net"
	"strconv"
)

// tcpServices and udpServices map the names of services to their ports. They contain all services that package net knows on a
// system without /etc/services. The numbers are IANA's.
var (
	tcpServices = map[string]uint16{
		"domain": 53, "ftp": 21, "ftps": 990, "gopher": 70, "http": 80, "https": 443, "imap": 143, "imap2": 143, "imap3": 220,
		"imaps": 993, "ldap": 389, "ldaps": 636, "mysql": 3306, "nntp": 119, "pop3": 110, "pop3s": 995, "postgresql": 5432,
		"redis": 6379, "smtp": 25, "ssh": 22, "submission": 587, "submissions": 465, "telnet": 23, "whois": 43,
	}
	udpServices = map[string]uint16{
		"domain": 53, "https": 443, "ntp": 123, "snmp": 161, "syslog": 514, "tftp": 69,
	}
)

// LookupPort returns the port of a service. The service is a port number or a common name, such as "https". LookupPort does not
// read the system's list of services. network is "tcp", "udp", one of them followed by 4 or 6, or "ip" for either.
func (n *Net) LookupPort(_ context.Context, network, service string) (port int, err error) {
	if service == "" {
		return 0, nil
	}
	if p, err := strconv.Atoi(service); err == nil {
		if p < 0 || p > 65535 {
			return 0, &net.AddrError{Err: "invalid port", Addr: service}
		}
		return p, nil
	}
	tcp, udp := false, false
	switch network {
	case "tcp", "tcp4", "tcp6":
		tcp = true
	case "udp", "udp4", "udp6":
		udp = true
	case "ip", "":
		tcp, udp = true, true
	default:
		return 0, &net.AddrError{Err: "unknown network", Addr: network}
	}
	name := lower(service)
	if p, ok := tcpServices[name]; ok && tcp {
		return int(p), nil
	}
	if p, ok := udpServices[name]; ok && udp {
		return int(p), nil
	}
	return 0, &net.DNSError{Err: "unknown port", Name: network + "/" + service, IsNotFound: true}
}
