package wire

import (
	"net"
	"net/netip"
	"slices"

	"github.com/holdfast-backup/holdfast"
)

// MaxServers bounds the addresses of a Route.
const MaxServers = 4

// MaxAddresses bounds the addresses that a host tells.
const MaxAddresses = 256

type (
	// A Route says which way the data of a task goes. The control connection is not concerned.
	Route struct {
		Network string   `json:"network,omitempty"` // CIDR: the agent's end of data connections has an address in it
		Egress  string   `json:"egress,omitempty"`  // the address of the agent's end
		Servers []string `json:"servers,omitempty"` // HOST:PORT of the appliance's end, at most MaxServers, tried in turn; none: where the agent is enrolled
	}
	// A HostAddress is an address of a host, with the interface that has it.
	HostAddress struct {
		Interface string `json:"interface"`
		Address   string `json:"address"` // with the length of its prefix: 192.0.2.7/24
	}
)

// Prefix returns the address with its network. Errors are Invalid.
func (a HostAddress) Prefix() (netip.Prefix, error) {
	p, err := netip.ParsePrefix(a.Address)
	if err != nil {
		return p, holdfast.Errorf(holdfast.Invalid, "read address", "%w", err)
	}
	return p, nil
}

// LocalAddresses lists the addresses of this machine, interface by interface: the interfaces that are up, loopback and link-local
// addresses included.
func LocalAddresses() ([]HostAddress, error) {
	const op = "list addresses"
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	var out []HostAddress
	for _, i := range ifs {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			return nil, holdfast.Errorf(holdfast.Internal, op, "%s: %w", i.Name, err)
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			ip, ok := netip.AddrFromSlice(n.IP)
			if !ok {
				continue
			}
			bits, _ := n.Mask.Size()
			out = append(out, HostAddress{Interface: i.Name, Address: netip.PrefixFrom(ip.Unmap(), bits).String()})
		}
	}
	return out, nil
}

// Reachable leaves out the addresses that nobody outside the machine reaches, and keeps no more than MaxAddresses.
func Reachable(all []HostAddress) []HostAddress {
	all = slices.DeleteFunc(slices.Clone(all), func(a HostAddress) bool {
		p, err := a.Prefix()
		return err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast()
	})
	return all[:min(len(all), MaxAddresses)]
}
