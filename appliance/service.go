package appliance

import (
	"context"
	"iter"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/auth"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/pools"
)

// Service is what the appliance can do: the API's handlers call it, and so will the console. Contracts are those of api.Service and
// api.Agents.
type Service struct {
	d       *Daemon
	started time.Time
}

var (
	_ api.Service = (*Service)(nil)
	_ api.Agents  = (*Service)(nil)

	_ api.Notifications = (*Service)(nil)
	_ api.Config        = (*Service)(nil)
	_ api.Monitors      = (*Service)(nil)
)

func (s *Service) now() time.Time { return s.d.c.Clock.Now().UTC() }

// Health implements api.Service.
func (s *Service) Health(context.Context) api.Health {
	return api.Health{Status: "ok", Version: s.d.c.Version}
}

// Status implements api.Service.
func (s *Service) Status(ctx context.Context) (api.Status, error) {
	st := api.Status{Version: s.d.c.Version, Started: s.started, Listen: s.address(), Data: s.d.c.Data, Expires: s.d.auth.Expires(),
		Running: []api.Run{}, Warnings: []string{}}
	var err error
	if st.Pools, err = s.Pools(ctx); err != nil {
		return st, err
	}
	if st.Hosts, err = s.Hosts(ctx); err != nil {
		return st, err
	}
	runs, err := s.Runs(ctx, catalog.DefaultPage)
	if err != nil {
		return st, err
	}
	for _, r := range runs {
		if !api.Final(r.State) {
			st.Running = append(st.Running, r)
		}
	}
	sets, err := catalog.ListSets(s.d.cat)
	if err != nil {
		return st, err
	}
	st.Sets = len(sets)
	vms, err := s.VMs(ctx)
	if err != nil {
		return st, err
	}
	st.VMs = len(vms)
	st.Warnings = append(st.Warnings, poolWarnings(st.Pools)...)
	if err := s.d.cat.Failed(); err != nil {
		st.Warnings = append(st.Warnings, "the catalog cannot be written: "+err.Error())
	}
	return st, nil
}

// address is the port as agents on other machines dial it.
func (s *Service) address() string {
	host, port, err := net.SplitHostPort(s.d.Addr())
	if err != nil {
		return s.d.Addr()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			host = name
		}
	}
	return net.JoinHostPort(host, port)
}

// poolRecords lists the pools that the catalog knows.
func (s *Service) poolRecords() ([]catalog.Pool, error) {
	return everyPage(s.d.cat, func(tx *catalog.Tx, p catalog.Page) ([]catalog.Pool, catalog.Cursor, error) { return tx.Pools(p) })
}

// everyPage collects a listing page by page.
func everyPage[T any](c *catalog.Catalog, list func(*catalog.Tx, catalog.Page) ([]T, catalog.Cursor, error)) ([]T, error) {
	var out []T
	err := c.View(func(tx *catalog.Tx) error {
		for p := (catalog.Page{Limit: catalog.MaxPage}); ; {
			part, next, err := list(tx, p)
			if err != nil {
				return err
			}
			out = append(out, part...)
			if next == "" {
				return nil
			}
			p.Cursor = next
		}
	})
	return out, err
}

// findPool returns the pool with the name or id, open.
func (s *Service) findPool(ctx context.Context, name string) (catalog.Pool, pools.Pool, error) {
	var rec catalog.Pool
	err := s.d.cat.View(func(tx *catalog.Tx) (err error) {
		rec, err = tx.FindPool(name)
		return advise(err, "'holdfast pool list' shows the pools there are")
	})
	if err != nil {
		return rec, nil, err
	}
	p, err := s.d.shelf.Pool(ctx, rec.ID)
	return rec, p, err
}

// advise adds advice to an error that has none.
func advise(err error, hint string) error {
	if err == nil || holdfast.HintOf(err) != "" {
		return err
	}
	return &holdfast.Error{Kind: holdfast.KindOf(err), Hint: hint, Err: err}
}

// Hosts implements api.Service.
func (s *Service) Hosts(context.Context) ([]api.Host, error) {
	recs, err := everyPage(s.d.cat, func(tx *catalog.Tx, p catalog.Page) ([]catalog.Host, catalog.Cursor, error) { return tx.Hosts(p) })
	if err != nil {
		return nil, err
	}
	vms, err := s.vmRecords()
	if err != nil {
		return nil, err
	}
	count := map[holdfast.HostID]int{}
	for _, v := range vms {
		count[v.Host]++
	}
	labels, err := s.labels()
	if err != nil {
		return nil, err
	}
	out := make([]api.Host, 0, len(recs))
	for _, h := range recs {
		x := api.Host{ID: h.ID.String(), Name: h.Name, State: api.HostOffline, Seen: h.LastSeen, Product: h.Info.Product, Version: h.Info.Version,
			Agent: h.Info.Name, VMs: count[h.ID], Protected: labels.host(h.ID)}
		s.d.showWay(&x, h.ID)
		if s.d.jobs.Online(h.ID) {
			x.State, x.Seen = api.HostOnline, s.now()
		}
		out = append(out, x)
	}
	return out, nil
}

func (s *Service) vmRecords() ([]catalog.VM, error) {
	return everyPage(s.d.cat, func(tx *catalog.Tx, p catalog.Page) ([]catalog.VM, catalog.Cursor, error) {
		return tx.VMs(holdfast.HostID{}, p)
	})
}

// EnrollHost implements api.Service. Keys that are used or expired are swept on the way.
func (s *Service) EnrollHost(ctx context.Context, name string) (api.EnrolKey, error) {
	if strings.TrimSpace(name) == "" || len(name) > 64 {
		return api.EnrolKey{}, holdfast.Errorf(holdfast.Invalid, "enrol host", "a host's name has 1 to 64 characters")
	}
	printable, hash := s.d.auth.NewAccessKey()
	now := s.now()
	key := catalog.EnrolKey{Hash: catalog.KeyHash(hash), HostName: name, Created: now, Expires: now.Add(auth.KeyLifetime)}
	if err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.AddEnrolKey(key) }); err != nil {
		return api.EnrolKey{}, err
	}
	return api.EnrolKey{Name: name, Key: printable, Server: s.address(), Expires: key.Expires}, nil
}

// RemoveHost implements api.Service. The certificate is worthless first; what follows can be repeated.
func (s *Service) RemoveHost(ctx context.Context, name string) (api.Host, error) {
	var rec catalog.Host
	err := s.d.cat.View(func(tx *catalog.Tx) (err error) {
		rec, err = tx.FindHost(name)
		return advise(err, "'holdfast host list' shows the hosts there are")
	})
	if err != nil {
		return api.Host{}, err
	}
	if err := s.d.auth.Revoke(rec.ID); err != nil {
		return api.Host{}, err
	}
	s.d.jobs.Disconnect(rec.ID)
	err = s.d.cat.Update(ctx, func(tx *catalog.Tx) error {
		if err := tx.DeleteSetting(hostNetwork + rec.ID.String()); err != nil {
			return err
		}
		return tx.DeleteHost(rec.ID)
	})
	if err == nil {
		err = s.d.networks.load(s.d.cat)
	}
	return api.Host{ID: rec.ID.String(), Name: rec.Name, State: api.HostOffline, Seen: rec.LastSeen}, err
}

// hostNames returns the hosts' names by id.
func (s *Service) hostNames(tx *catalog.Tx) (map[holdfast.HostID]string, error) {
	names := map[holdfast.HostID]string{}
	for p := (catalog.Page{Limit: catalog.MaxPage}); ; {
		hs, next, err := tx.Hosts(p)
		if err != nil {
			return nil, err
		}
		for _, h := range hs {
			names[h.ID] = h.Name
		}
		if next == "" {
			return names, nil
		}
		p.Cursor = next
	}
}

// VMs implements api.Service.
func (s *Service) VMs(context.Context) ([]api.VM, error) {
	s.d.jobs.RefreshStale() // for the next time: what is known is shown at once
	recs, err := s.vmRecords()
	if err != nil {
		return nil, err
	}
	var names map[holdfast.HostID]string
	err = s.d.cat.View(func(tx *catalog.Tx) (err error) {
		names, err = s.hostNames(tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	labels, err := s.labels()
	if err != nil {
		return nil, err
	}
	out := make([]api.VM, 0, len(recs))
	for _, v := range recs {
		x := api.VM{ID: v.ID.String(), Name: v.Name, Host: names[v.Host], HostID: v.Host.String(), Generation: v.Generation, State: v.State,
			Disks: []api.VMDisk{}, Skipped: s.d.jobs.Skipped(v.Host)[v.ID], Protected: labels.vm(v.ID)}
		for _, d := range v.Disks {
			x.Disks = append(x.Disks, api.VMDisk{ID: d.ID.String(), Name: d.Name, Size: d.Size})
			x.Size += d.Size
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b api.VM) int {
		return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID)
	})
	return out, nil
}

// Events implements api.Service.
func (s *Service) Events(ctx context.Context, after uint64) iter.Seq2[api.Event, error] {
	return s.d.events.follow(ctx, after)
}

// LastEvent implements api.Service.
func (s *Service) LastEvent(context.Context) (n uint64, err error) {
	err = s.d.cat.View(func(tx *catalog.Tx) error {
		n, err = tx.LastEvent()
		return err
	})
	return n, err
}
