package appliance

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// Networks and the ways of hosts are settings of the catalog.
const (
	namedNetwork = "network.name." // CIDR, by name
	hostNetwork  = "network.host." // hostWay, by host
)

const eventHostNetwork holdfast.EventType = "host-network-changed"

const networkHint = "'holdfast network list' shows the networks and addresses there are; one without a name is given like 192.0.2.0/24"

// A hostWay is what is set about the way of a host's data.
type hostWay struct {
	Network string `json:"network,omitempty"` // name or CIDR
	Egress  string `json:"egress,omitempty"`
}

// networks is what holds about ways, in memory, for who hands out tasks cannot wait for the catalog.
type networks struct {
	mu    sync.Mutex // leaf
	named map[string]netip.Prefix
	ways  map[holdfast.HostID]hostWay
	paths map[holdfast.HostID]api.DataPath // the last data connection of each host
}

// load reads what is set anew.
func (n *networks) load(cat *catalog.Catalog) error {
	named, ways := map[string]netip.Prefix{}, map[holdfast.HostID]hostWay{}
	err := cat.View(func(tx *catalog.Tx) error {
		all, err := tx.Settings()
		if err != nil {
			return err
		}
		for key, raw := range all {
			if name, ok := strings.CutPrefix(key, namedNetwork); ok {
				var text string
				err := json.Unmarshal(raw, &text)
				if err == nil {
					named[name], err = netip.ParsePrefix(text)
				}
				if err != nil {
					return holdfast.Errorf(holdfast.Corrupt, "read networks", "%s: %w", key, err)
				}
			}
			if text, ok := strings.CutPrefix(key, hostNetwork); ok {
				id, err := holdfast.ParseID(text)
				var w hostWay
				if err == nil {
					err = json.Unmarshal(raw, &w)
				}
				if err != nil {
					return holdfast.Errorf(holdfast.Corrupt, "read networks", "%s: %w", key, err)
				}
				ways[holdfast.HostID{ID: id}] = w
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.named, n.ways = named, ways
	return nil
}

func (n *networks) way(id holdfast.HostID) hostWay {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ways[id]
}

// prefix returns a network given by name or CIDR.
func (n *networks) prefix(text string) (netip.Prefix, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, ok := n.named[text]; ok {
		return p, true
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err == nil
}

func (n *networks) names() []api.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := []api.Network{}
	for _, name := range slices.Sorted(maps.Keys(n.named)) {
		out = append(out, api.Network{Name: name, CIDR: n.named[name].String()})
	}
	return out
}

// came notes a data connection.
func (n *networks) came(id holdfast.HostID, p api.DataPath) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.paths == nil {
		n.paths = map[holdfast.HostID]api.DataPath{}
	}
	n.paths[id] = p
}

func (n *networks) path(id holdfast.HostID) *api.DataPath {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, ok := n.paths[id]; ok {
		return &p
	}
	return nil
}

// route says which way the data of a host's task goes: as the host was told, unless the job names a network. Then the host's egress address
// counts only if it is in that network.
func (d *Daemon) route(id holdfast.HostID, network string) *wire.Route {
	w := d.networks.way(id)
	switch network {
	case "":
	case job.AnyNetwork:
		w = hostWay{}
	default:
		if p, ok := d.networks.prefix(network); ok {
			if a, err := netip.ParseAddr(w.Egress); err != nil || !p.Contains(a) {
				w.Egress = ""
			}
		}
		w.Network = network
	}
	if w == (hostWay{}) {
		return nil
	}
	r := &wire.Route{Network: w.Network, Egress: w.Egress} // a name that is not known any more is an error at the agent, which tells it
	if p, ok := d.networks.prefix(w.Network); ok {
		r.Network = p.String()
		for _, a := range d.reachable() {
			if at, err := a.Prefix(); err == nil && p.Contains(at.Addr()) && len(r.Servers) < wire.MaxServers {
				r.Servers = append(r.Servers, net.JoinHostPort(at.Addr().String(), strconv.Itoa(d.portNumber())))
			}
		}
	}
	return r
}

func (d *Daemon) portNumber() int {
	if a, ok := d.port.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return wire.DefaultPort
}

// reachable returns the addresses of this machine at which the port listens.
func (d *Daemon) reachable() []wire.HostAddress {
	bound, ok := d.port.Addr().(*net.TCPAddr)
	all, err := wire.LocalAddresses()
	if err != nil || !ok {
		return nil // agents go where they are enrolled
	}
	at, _ := netip.AddrFromSlice(bound.IP)
	at = at.Unmap()
	return slices.DeleteFunc(all, func(a wire.HostAddress) bool {
		p, err := a.Prefix()
		switch {
		case err != nil || p.Addr().Is6() && p.Addr().IsLinkLocalUnicast(): // it needs a zone, which is another one at each end
			return true
		case !at.IsValid() || at == netip.IPv6Unspecified():
			return false
		case at == netip.IPv4Unspecified():
			return !p.Addr().Is4()
		}
		return p.Addr() != at
	})
}

// Networks implements api.Service.
func (s *Service) Networks(ctx context.Context) (api.NetworkList, error) {
	out := api.NetworkList{Networks: s.d.networks.names(), Appliance: []api.NetAddress{}, Hosts: []api.HostNetworks{}}
	out.Appliance = append(out.Appliance, s.inNetworks(wire.Reachable(s.d.reachable()))...)
	hosts, err := s.Hosts(ctx)
	if err != nil {
		return out, err
	}
	for _, h := range hosts {
		id, err := holdfast.ParseID(h.ID)
		if err != nil {
			return out, err
		}
		out.Hosts = append(out.Hosts, api.HostNetworks{Host: h.Name, State: h.State, DataNetwork: h.DataNetwork, Egress: h.Egress,
			Addresses: s.inNetworks(s.d.jobs.Addresses(holdfast.HostID{ID: id}))})
	}
	return out, nil
}

// inNetworks shows addresses with the smallest named network that each is in.
func (s *Service) inNetworks(addrs []wire.HostAddress) []api.NetAddress {
	names := s.d.networks.names()
	out := []api.NetAddress{}
	for _, a := range addrs {
		x, best := api.NetAddress{Interface: a.Interface, Address: a.Address}, -1
		at, err := a.Prefix()
		for _, n := range names {
			if p, bad := netip.ParsePrefix(n.CIDR); err == nil && bad == nil && p.Contains(at.Addr()) && p.Bits() > best {
				x.Network, best = n.Name, p.Bits()
			}
		}
		out = append(out, x)
	}
	return out
}

// CreateNetwork implements api.Service.
func (s *Service) CreateNetwork(ctx context.Context, n api.Network) (api.Network, error) {
	n, err := readNetwork(n)
	if err != nil {
		return n, err
	}
	if s.named(n.Name) {
		return n, holdfast.Errorf(holdfast.Exist, "name network", "there is a network %s already", n.Name).Advise("'holdfast network delete %s' forgets it", n.Name)
	}
	return n, s.putNetwork(ctx, n)
}

func (s *Service) named(name string) bool {
	return slices.ContainsFunc(s.d.networks.names(), func(n api.Network) bool { return n.Name == name })
}

// putNetwork keeps a network that was read by readNetwork, in the place of one of its name.
func (s *Service) putNetwork(ctx context.Context, n api.Network) error {
	raw, err := json.Marshal(n.CIDR)
	if err != nil {
		return err
	}
	if err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.PutSetting(namedNetwork+n.Name, raw) }); err != nil {
		return err
	}
	return s.d.networks.load(s.d.cat)
}

func readNetwork(n api.Network) (api.Network, error) {
	const op = "name network"
	if !job.ScriptName(n.Name) || n.Name == "any" || n.Name == "host" || n.Name == "none" {
		return n, holdfast.Errorf(holdfast.Invalid, op, "%q is no name for a network", n.Name).Advise("1 to 64 letters, digits, and . _ - inside; any, host and none mean something else")
	}
	p, err := netip.ParsePrefix(n.CIDR)
	if err != nil {
		return n, holdfast.Errorf(holdfast.Invalid, op, "%q is no network: %w", n.CIDR, err).Advise("write it like 192.0.2.0/24 or 2001:db8::/64")
	}
	n.CIDR = p.Masked().String()
	return n, nil
}

// DeleteNetwork implements api.Service.
func (s *Service) DeleteNetwork(ctx context.Context, name string) (api.Network, error) {
	const op = "forget network"
	out := api.Network{Name: name}
	p, _ := s.d.networks.prefix(name)
	if !s.named(name) {
		return out, holdfast.Errorf(holdfast.NotExist, op, "there is no network named %q", name).Advise(networkHint)
	}
	out.CIDR = p.String()
	users, err := s.networkUsers(ctx, name)
	if err != nil {
		return out, err
	}
	if len(users) > 0 {
		return out, holdfast.Errorf(holdfast.Busy, op, "%s is the data network of %s", name, strings.Join(users, ", ")).Advise("give them another one first")
	}
	if err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteSetting(namedNetwork + name) }); err != nil {
		return out, err
	}
	return out, s.d.networks.load(s.d.cat)
}

// networkUsers names the hosts and jobs whose data goes through a network.
func (s *Service) networkUsers(ctx context.Context, name string) (users []string, err error) {
	hosts, err := s.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		if h.DataNetwork == name {
			users = append(users, "host "+h.Name)
		}
	}
	jobs, err := s.Jobs(ctx)
	for _, j := range jobs {
		if j.Options["network"] == name {
			users = append(users, "job "+j.Name)
		}
	}
	return users, err
}

// checkNetwork refuses a network that is neither a CIDR nor one with a name.
func (s *Service) checkNetwork(text string) error {
	if text == "" || text == job.AnyNetwork {
		return nil
	}
	if _, ok := s.d.networks.prefix(text); !ok {
		return holdfast.Errorf(holdfast.NotExist, "choose network", "there is no network %q", text).Advise(networkHint)
	}
	return nil
}
