package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// maxLocals bounds the addresses of the host that are tried for one connection.
const maxLocals = 4

// A way is a Route as it was read.
type way struct {
	network netip.Prefix // zero: any
	egress  netip.Addr   // zero: any in the network
	servers []string
}

// DialBy opens a link for the data of one task, as Dial does, whose connections go the way that r says. Each connection, later ones
// too, looks for the host's addresses anew. Errors are Invalid where the host has no such address, or none that fits the appliance's.
func (c *Client) DialBy(ctx context.Context, r *wire.Route, o wire.LinkOptions) (*wire.Link, error) {
	if r == nil {
		return c.Dial(ctx, o)
	}
	w, err := readRoute(r)
	if err != nil {
		return nil, err
	}
	if len(w.servers) == 0 {
		w.servers = []string{c.server}
	}
	l, err := wire.Dial(ctx, func(ctx context.Context) (net.Conn, error) { return c.dialWay(ctx, w) }, o)
	if err != nil {
		return nil, c.classify("connect", err)
	}
	return l, nil
}

func readRoute(r *wire.Route) (w way, err error) {
	const op = "read route"
	if r.Network != "" {
		if w.network, err = netip.ParsePrefix(r.Network); err != nil {
			return w, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
		}
	}
	if r.Egress != "" {
		if w.egress, err = netip.ParseAddr(r.Egress); err != nil {
			return w, holdfast.Errorf(holdfast.Invalid, op, "%w", err)
		}
	}
	if len(r.Servers) > wire.MaxServers {
		return w, holdfast.Errorf(holdfast.Invalid, op, "%d addresses of the appliance", len(r.Servers))
	}
	w.servers = r.Servers
	return w, nil
}

// dialWay connects from the first address that fits to the first of the appliance's that answers.
func (c *Client) dialWay(ctx context.Context, w way) (net.Conn, error) {
	have, err := wire.LocalAddresses()
	if err != nil {
		return nil, err
	}
	locals, err := w.locals(have)
	if err != nil {
		return nil, err
	}
	type pair struct {
		from netip.Addr
		to   string
	}
	var pairs []pair
	for _, to := range w.servers {
		for _, from := range locals {
			if fits(from, to) {
				pairs = append(pairs, pair{from, to})
			}
		}
	}
	if len(pairs) == 0 {
		return nil, misfit(locals[0], w.servers)
	}
	var errs []error
	for _, p := range pairs { // they share the time of one
		d := tls.Dialer{Config: c.data, NetDialer: &net.Dialer{Timeout: connectTime / time.Duration(len(pairs)), LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.from, 0))}}
		conn, err := d.DialContext(ctx, "tcp", p.to)
		if err == nil {
			return conn, nil
		}
		var unsuitable *net.AddrError
		if errors.As(err, &unsuitable) { // a name that has no address of this family
			errs = append(errs, misfit(p.from, []string{p.to}))
			continue
		}
		errs = append(errs, c.unreached(p.from, p.to, err))
	}
	return nil, errs[0]
}

// unreached says between which addresses a connection could not be made, and what to look at.
func (c *Client) unreached(from netip.Addr, to string, err error) error {
	e := c.classify("connect", err)
	if holdfast.KindOf(e) != holdfast.Offline {
		return e
	}
	return holdfast.Errorf(holdfast.Offline, "connect", "data from %s to %s: %w", from, to, err).
		Advise("can this host reach %s from its address %s? The data network and the egress address of the host decide: 'holdfast host show' shows them, 'holdfast host set' changes them", to, from)
}

// fits tells whether addresses are of one family. Of a name that is found out later.
func fits(from netip.Addr, server string) bool {
	host, _, err := net.SplitHostPort(server)
	if err != nil {
		return true // dialling says what is wrong
	}
	to, err := netip.ParseAddr(host)
	return err != nil || to.Unmap().Is4() == from.Is4()
}

func misfit(from netip.Addr, servers []string) error {
	return holdfast.Errorf(holdfast.Invalid, "choose address", "data is to leave from %s, but the appliance is dialled at %s, an address of the other kind", from, strings.Join(servers, ", ")).
		Advise("choose an egress address of the kind that the appliance has, or a data network in which both have addresses: 'holdfast network list' shows them, 'holdfast host set HOST --data-network NETWORK --egress ADDRESS' changes it")
}

// locals returns the host's addresses from which data may leave, at least one.
func (w way) locals(have []wire.HostAddress) ([]netip.Addr, error) {
	const op = "choose address"
	const advice = "'holdfast network list' shows the addresses that hosts have; 'holdfast host set HOST --egress ADDRESS --data-network NETWORK' changes what was chosen, none for either takes it away"
	if w.egress.IsValid() {
		if w.network.IsValid() && !w.network.Contains(w.egress) {
			return nil, holdfast.Errorf(holdfast.Invalid, op, "the egress address %s is not in the data network %s", w.egress, w.network).Advise(advice)
		}
		if !here(w.egress) {
			return nil, holdfast.Errorf(holdfast.Invalid, op, "data is to leave from %s, but this host has no such address; it has %s", w.egress, listed(have)).Advise(advice)
		}
		return []netip.Addr{w.egress}, nil
	}
	var out []netip.Addr
	for _, a := range have {
		p, err := a.Prefix()
		if err == nil && w.network.Contains(p.Addr()) && len(out) < maxLocals {
			out = append(out, p.Addr())
		}
	}
	if len(out) == 0 {
		return nil, holdfast.Errorf(holdfast.Invalid, op, "this host has no address in the data network %s; it has %s", w.network, listed(have)).Advise(advice)
	}
	return out, nil
}

func listed(have []wire.HostAddress) string {
	var out []string
	for _, a := range wire.Reachable(have) {
		out = append(out, a.Address)
	}
	if len(out) == 0 {
		return "none but its own loopback addresses"
	}
	return strings.Join(out[:min(len(out), 16)], ", ")
}

// here tells whether an address is this host's. Asking the system by taking a port of it also finds those that no interface lists, as
// 127.0.0.2.
func here(a netip.Addr) bool {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return false
	}
	_ = c.Close() // nothing was sent
	return true
}
