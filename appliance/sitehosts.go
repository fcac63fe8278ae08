package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/appliance/site"
	"github.com/holdfast-backup/holdfast/catalog"
)

// A siteHost is a host in a site file: what is set about it.
type siteHost struct {
	Protected   bool   `json:"protected,omitempty"`
	DataNetwork string `json:"data_network,omitempty"`
	Egress      string `json:"egress,omitempty"`
}

type hostPart struct{ s *Service }

func (hostPart) Section() string { return "hosts" }
func (hostPart) Remark() string {
	return "A host that is not there yet gets a one-time key, which apply prints: its agent must be enrolled with it on the host."
}

// Current lists hosts that are enrolled, and those whose keys wait to be used.
func (p hostPart) Current(context.Context) (map[string]site.Item, error) {
	hosts, err := everyPage(p.s.d.cat, func(tx *catalog.Tx, page catalog.Page) ([]catalog.Host, catalog.Cursor, error) { return tx.Hosts(page) })
	if err != nil {
		return nil, err
	}
	labels, err := p.s.labels()
	if err != nil {
		return nil, err
	}
	waiting, err := p.keys()
	if err != nil {
		return nil, err
	}
	out := map[string]site.Item{}
	for _, k := range waiting {
		out[k.HostName] = site.Item{}
	}
	for _, h := range hosts {
		if _, waits := out[h.Name]; h.State == catalog.HostPending && !waits { // one whose key has expired needs another
			continue
		}
		w := p.s.d.networks.way(h.ID)
		if out[h.Name], err = site.Encode(siteHost{labels.host(h.ID), w.Network, w.Egress}); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// keys lists the keys that can still be used.
func (p hostPart) keys() ([]catalog.EnrolKey, error) {
	all, err := everyPage(p.s.d.cat, func(tx *catalog.Tx, page catalog.Page) ([]catalog.EnrolKey, catalog.Cursor, error) {
		return tx.EnrolKeys(page)
	})
	var out []catalog.EnrolKey
	for _, k := range all {
		if k.UsedAt.IsZero() && k.Expires.After(p.s.now()) {
			out = append(out, k)
		}
	}
	return out, err
}

// Normal brings addresses into their one form. Whether a network's name is known is found out when it is set: the same file may bring it.
func (hostPart) Normal(name string, it site.Item) (site.Item, error) {
	var x siteHost
	err := site.Decode(it, &x)
	if err != nil {
		return nil, err
	}
	if x.Egress != "" {
		if x.Egress, err = readEgress(x.Egress); err != nil {
			return nil, err
		}
	}
	if p, err := netip.ParsePrefix(x.DataNetwork); err == nil {
		x.DataNetwork = p.Masked().String()
	} else if x.DataNetwork != "" && !job.ScriptName(x.DataNetwork) {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "data_network %q is neither a name nor like 192.0.2.0/24", x.DataNetwork)
	}
	if strings.TrimSpace(name) == "" || len(name) > 64 {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "a host's name has 1 to 64 characters")
	}
	return site.Encode(x)
}

func (hostPart) Refuse(string, site.Item, site.Item) error { return nil }

func (hostPart) Loss(_ context.Context, _ string, was, now site.Item) (string, error) {
	if now != nil {
		return unprotected(was, now), nil
	}
	return "its agent will be turned away for good, or its key be worthless; to come back it must be enrolled anew. Its backup sets stay", nil
}

// unprotected says what is lost where an item has the label no longer.
func unprotected(was, now site.Item) string {
	if was["protected"] == true && now["protected"] != true {
		return "it is protected no longer: restores may change it"
	}
	return ""
}

func (p hostPart) Create(ctx context.Context, name string, it site.Item) (site.Made, error) {
	k, err := p.s.EnrollHost(ctx, name)
	if err == nil {
		err = p.expect(ctx, name)
	}
	if err == nil && len(it) > 0 {
		err = p.Change(ctx, name, nil, it)
	}
	return site.Made{Secret: k.Key, Text: fmt.Sprintf("on the host, until %s: holdfast-agent enroll --data DIR --server %s --key KEY", k.Expires.Format("2006-01-02 15:04 MST"), k.Server)}, err
}

// expect makes the record of a host that has not come yet, so that jobs can be for it.
func (p hostPart) expect(ctx context.Context, name string) error {
	return p.s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		if _, err := tx.HostByName(name); !errors.Is(err, holdfast.NotExist) {
			return err
		}
		return tx.PutHost(catalog.Host{ID: holdfast.HostID{ID: holdfast.NewID()}, Name: name, State: catalog.HostPending})
	})
}

// Change sets what differs. A host whose key is waited for has a record by now.
func (p hostPart) Change(ctx context.Context, name string, was, now site.Item) error {
	var a, b siteHost
	err := site.Decode(now, &b)
	if was != nil && err == nil {
		err = site.Decode(was, &a)
	}
	if err == nil {
		err = p.expect(ctx, name)
	}
	if err != nil {
		return err
	}
	c := api.HostChange{DataNetwork: &b.DataNetwork, Egress: &b.Egress}
	if a.DataNetwork == b.DataNetwork && a.Egress == b.Egress {
		c = api.HostChange{}
	}
	if a.Protected != b.Protected {
		c.Protected = &b.Protected
	}
	_, err = p.s.SetHost(ctx, name, c)
	return err
}

// Delete removes the host, and the keys that wait for it.
func (p hostPart) Delete(ctx context.Context, name string) error {
	keys, err := p.keys()
	if err != nil {
		return err
	}
	err = p.s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		for _, k := range keys {
			if k.HostName == name {
				if err := tx.DeleteEnrolKey(k.Hash); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if _, err := p.s.RemoveHost(ctx, name); err != nil && holdfast.KindOf(err) != holdfast.NotExist { // it was only waited for
		return err
	}
	return nil
}

// A siteNetwork is a named network in a site file.
type siteNetwork struct {
	CIDR string `json:"cidr"`
}

type networkPart struct{ s *Service }

func (networkPart) Section() string { return "networks" }
func (networkPart) Remark() string {
	return "Names for networks, which hosts (data_network) and jobs (option network) refer to."
}

func (p networkPart) Current(context.Context) (map[string]site.Item, error) {
	out := map[string]site.Item{}
	for _, n := range p.s.d.networks.names() {
		out[n.Name] = site.Item{"cidr": n.CIDR}
	}
	return out, nil
}

func (networkPart) Normal(name string, it site.Item) (site.Item, error) {
	var x siteNetwork
	if err := site.Decode(it, &x); err != nil {
		return nil, err
	}
	n, err := readNetwork(api.Network{Name: name, CIDR: x.CIDR})
	return site.Item{"cidr": n.CIDR}, err
}

func (networkPart) Refuse(string, site.Item, site.Item) error { return nil }
func (networkPart) Loss(context.Context, string, site.Item, site.Item) (string, error) {
	return "", nil
}

func (p networkPart) Create(ctx context.Context, name string, it site.Item) (site.Made, error) {
	return site.Made{}, p.Change(ctx, name, nil, it)
}

func (p networkPart) Change(ctx context.Context, name string, _, now site.Item) error {
	var x siteNetwork
	if err := site.Decode(now, &x); err != nil {
		return err
	}
	return p.s.putNetwork(ctx, api.Network{Name: name, CIDR: x.CIDR})
}

func (p networkPart) Delete(ctx context.Context, name string) error {
	_, err := p.s.DeleteNetwork(ctx, name)
	return err
}

// vmPart is the labels of virtual machines. One without a label is not in the section.
type vmPart struct{ s *Service }

func (vmPart) Section() string { return "virtual_machines" }
func (vmPart) Remark() string {
	return "Labels of virtual machines, by name, or by id where a name is not the only one: protected ones are never changed by a restore."
}

func (p vmPart) Current(context.Context) (map[string]site.Item, error) {
	labels, err := p.s.labels()
	if err != nil {
		return nil, err
	}
	vms, err := p.s.vmRecords()
	if err != nil {
		return nil, err
	}
	out := map[string]site.Item{}
	for key := range labels {
		if id, ok := strings.CutPrefix(key, protectedVM); ok {
			out[vmName(vms, id)] = site.Item{"protected": true}
		}
	}
	return out, nil
}

func (p vmPart) Normal(_ string, it site.Item) (site.Item, error) {
	var x struct {
		Protected bool `json:"protected"`
	}
	if err := site.Decode(it, &x); err != nil {
		return nil, err
	}
	if !x.Protected {
		return nil, holdfast.Errorf(holdfast.Invalid, "", "a virtual machine without a label does not belong into the section").Advise("write protected: true, or take it out")
	}
	return site.Item{"protected": true}, nil
}

func (vmPart) Refuse(string, site.Item, site.Item) error { return nil }

func (vmPart) Loss(_ context.Context, _ string, was, now site.Item) (string, error) {
	return unprotected(was, now), nil
}

func (p vmPart) Create(ctx context.Context, name string, it site.Item) (site.Made, error) {
	return site.Made{}, p.Change(ctx, name, nil, it)
}

func (p vmPart) Change(ctx context.Context, name string, _, _ site.Item) error {
	_, err := p.s.ProtectVM(ctx, name, api.Label{Protected: true})
	return err
}

func (p vmPart) Delete(ctx context.Context, name string) error {
	_, err := p.s.ProtectVM(ctx, name, api.Label{})
	return err
}
