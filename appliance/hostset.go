package appliance

import (
	"context"
	"encoding/json"
	"net/netip"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/catalog"
)

// Host implements api.Service.
func (s *Service) Host(ctx context.Context, name string) (api.Host, error) {
	rec, err := s.hostRecord(name)
	if err != nil {
		return api.Host{}, err
	}
	hs, err := s.Hosts(ctx)
	for _, h := range hs {
		if h.ID == rec.ID.String() {
			h.Addresses = s.inNetworks(s.d.jobs.Addresses(rec.ID))
			return h, err
		}
	}
	return api.Host{}, err
}

// SetHost implements api.Service. What is wrong with a part of the change keeps all of it from being made.
func (s *Service) SetHost(ctx context.Context, name string, c api.HostChange) (api.Host, error) {
	rec, err := s.hostRecord(name)
	if err != nil {
		return api.Host{}, err
	}
	if c.DataNetwork != nil || c.Egress != nil {
		if err := s.setWay(ctx, rec, c); err != nil {
			return api.Host{}, err
		}
	}
	if c.Protected != nil {
		if err := s.protect(ctx, protectedHost+rec.ID.String(), "host "+rec.Name, api.Label{Protected: *c.Protected}); err != nil {
			return api.Host{}, err
		}
	}
	return s.Host(ctx, rec.ID.String())
}

// setWay changes which way a host's data goes.
func (s *Service) setWay(ctx context.Context, rec catalog.Host, c api.HostChange) error {
	w := s.d.networks.way(rec.ID)
	if c.DataNetwork != nil {
		w.Network = *c.DataNetwork
	}
	if c.Egress != nil {
		w.Egress = *c.Egress
	}
	w, err := s.readWay(w)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(w)
	if err != nil {
		return err
	}
	err = s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		if w == (hostWay{}) {
			return tx.DeleteSetting(hostNetwork + rec.ID.String())
		}
		return tx.PutSetting(hostNetwork+rec.ID.String(), raw)
	})
	if err == nil {
		err = s.d.networks.load(s.d.cat)
	}
	if err != nil {
		return err
	}
	s.d.events.Emit(holdfast.Event{Type: eventHostNetwork, Text: "the data of host " + rec.Name + " " + w.text(),
		Fields: map[string]string{"host": rec.Name, "id": rec.ID.String(), "network": w.Network, "egress": w.Egress}})
	return nil
}

// readWay brings a way into its one form. "none" takes a part away.
func (s *Service) readWay(w hostWay) (hostWay, error) {
	const op = "set host"
	if w.Network == "none" {
		w.Network = ""
	}
	if w.Egress == "none" {
		w.Egress = ""
	}
	if err := s.checkNetwork(w.Network); err != nil {
		return w, err
	}
	if p, err := netip.ParsePrefix(w.Network); err == nil {
		w.Network = p.Masked().String()
	}
	if w.Egress == "" {
		return w, nil
	}
	var err error
	if w.Egress, err = readEgress(w.Egress); err != nil {
		return w, err
	}
	if p, ok := s.d.networks.prefix(w.Network); ok && !p.Contains(netip.MustParseAddr(w.Egress)) {
		return w, holdfast.Errorf(holdfast.Invalid, op, "the egress address %s is not in the data network %s", w.Egress, w.Network).
			Advise("choose an address in the network, or leave the choice to the agent with --egress none")
	}
	return w, nil
}

// readEgress brings an address into its one form.
func readEgress(text string) (string, error) {
	a, err := netip.ParseAddr(text)
	if err != nil || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
		return "", holdfast.Errorf(holdfast.Invalid, "set host", "%q is no address that data can leave from", text).
			Advise("give one address of the host, IPv4 or IPv6; 'holdfast network list' shows them")
	}
	return a.Unmap().String(), nil
}

func (w hostWay) text() string {
	switch {
	case w == (hostWay{}):
		return "goes as the host's routing has it"
	case w.Egress == "":
		return "goes through " + w.Network
	case w.Network == "":
		return "leaves from " + w.Egress
	}
	return "leaves from " + w.Egress + " through " + w.Network
}

// problem says why a host's data will not get through, as far as the appliance can see: what an agent does not list may still be there.
func (d *Daemon) problem(id holdfast.HostID, w hostWay) string {
	addrs := d.jobs.Addresses(id)
	if len(addrs) == 0 || w == (hostWay{}) {
		return ""
	}
	egress, err := netip.ParseAddr(w.Egress)
	p, bound := d.networks.prefix(w.Network)
	if w.Network != "" && !bound {
		return "the data network " + w.Network + " is not known any more"
	}
	if err == nil && egress.IsLoopback() || bound && p.Addr().IsLoopback() {
		return "" // agents do not list those
	}
	for _, a := range addrs {
		at, bad := a.Prefix()
		if bad == nil && (err != nil || at.Addr() == egress) && (!bound || p.Contains(at.Addr())) {
			return ""
		}
	}
	if err == nil {
		return "the host has no address " + w.Egress + " now"
	}
	return "the host has no address in " + w.Network + " now"
}

// showWay adds to a host what is set about its data, and what became of it.
func (d *Daemon) showWay(h *api.Host, id holdfast.HostID) {
	w := d.networks.way(id)
	h.DataNetwork, h.Egress, h.DataPath, h.Problem = w.Network, w.Egress, d.networks.path(id), d.problem(id, w)
}
