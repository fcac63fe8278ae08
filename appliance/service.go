package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	"github.com/holdfast-backup/holdfast/ingest"
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
	for _, p := range st.Pools {
		if p.State != api.PoolOpen {
			st.Warnings = append(st.Warnings, fmt.Sprintf("pool %s is offline: %s", p.Name, p.Error))
		}
	}
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

// Pools implements api.Service.
func (s *Service) Pools(ctx context.Context) ([]api.Pool, error) {
	recs, err := s.poolRecords()
	if err != nil {
		return nil, err
	}
	out := make([]api.Pool, 0, len(recs))
	for _, rec := range recs {
		out = append(out, s.showPool(ctx, rec))
	}
	return out, nil
}

// showPool shows a pool as it is now; one that cannot be opened is offline, which is no error of the listing.
func (s *Service) showPool(ctx context.Context, rec catalog.Pool) api.Pool {
	p := api.Pool{ID: rec.ID.String(), Name: rec.Name, Kind: rec.Kind, State: api.PoolOffline, Config: rec.Config, Created: rec.Created}
	pool, err := s.d.shelf.Pool(ctx, rec.ID)
	if err == nil {
		var u pools.Usage
		if u, err = pool.Usage(ctx); err == nil {
			p.State, p.Usage, p.Chunking = api.PoolOpen, &u, pool.Traits().Chunking.String()
			if u.Stored > 0 {
				p.Ratio = float64(u.Logical) / float64(u.Stored)
			}
			return p
		}
	}
	p.Error = err.Error()
	return p
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

// Pool implements api.Service.
func (s *Service) Pool(ctx context.Context, name string) (api.Pool, error) {
	rec, _, err := s.findPool(ctx, name)
	if err != nil && rec.ID.IsZero() {
		return api.Pool{}, err
	}
	return s.showPool(ctx, rec), nil
}

// CreatePool implements api.Service. The pool is noted before it is made, so that one whose making was cut off can be taken over.
func (s *Service) CreatePool(ctx context.Context, spec api.PoolSpec) (api.Pool, error) {
	rec, err := s.newPool(spec)
	if err != nil {
		return api.Pool{}, err
	}
	drv, err := s.d.c.Drivers.Find(spec.Kind)
	if err != nil {
		return api.Pool{}, err
	}
	rec.ID = holdfast.PoolID{ID: holdfast.NewID()}
	if err := drv.Create(ctx, s.d.shelf.envOf(rec.ID), rec.ID, rec.Config); err != nil {
		if holdfast.KindOf(err) == holdfast.Exist {
			err = advise(err, "choose an empty folder; a pool that is there already is taken over with 'holdfast pool import'")
		}
		return api.Pool{}, err
	}
	return s.shelve(ctx, rec)
}

// newPool makes the record of a pool that is not known yet.
func (s *Service) newPool(spec api.PoolSpec) (catalog.Pool, error) {
	const op = "create pool"
	rec := catalog.Pool{Name: spec.Name, Kind: spec.Kind, Created: s.now(), State: catalog.PoolReady}
	if strings.TrimSpace(spec.Name) == "" || len(spec.Name) > 64 {
		return rec, holdfast.Errorf(holdfast.Invalid, op, "a pool's name has 1 to 64 characters")
	}
	if !strings.HasPrefix(spec.Path, "/") {
		return rec, holdfast.Errorf(holdfast.Invalid, op, "the path %q is not absolute", spec.Path).Advise("say in which folder of the appliance the pool shall be, from / on")
	}
	config := map[string]any{}
	for k, v := range spec.Config {
		config[k] = v
	}
	config["path"] = spec.Path
	if spec.Chunking != "" {
		config["chunking"] = spec.Chunking
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return rec, holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	rec.Config = raw
	return rec, s.d.cat.View(func(tx *catalog.Tx) error {
		switch _, err := tx.PoolByName(spec.Name); {
		case err == nil:
			return holdfast.Errorf(holdfast.Exist, op, "there is a pool %q already", spec.Name).Advise("choose another name")
		case !errors.Is(err, holdfast.NotExist):
			return err
		}
		return nil
	})
}

// shelve records a pool that is there, in pools.json first, and opens it.
func (s *Service) shelve(ctx context.Context, rec catalog.Pool) (api.Pool, error) {
	if err := s.d.shelf.note(rec); err != nil {
		return api.Pool{}, err
	}
	if err := s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.PutPool(rec) }); err != nil {
		return api.Pool{}, err
	}
	s.d.shelf.add(rec)
	if _, err := s.d.shelf.Pool(ctx, rec.ID); err != nil {
		return api.Pool{}, err
	}
	return s.showPool(ctx, rec), nil
}

// ImportPool implements api.Service. Importing a pool that is known already under the same name changes nothing.
func (s *Service) ImportPool(ctx context.Context, spec api.PoolSpec) (api.Pool, error) {
	const op = "import pool"
	recs, err := s.poolRecords()
	if err != nil {
		return api.Pool{}, err
	}
	for _, rec := range recs {
		if pathOf(rec.Config) == spec.Path {
			if rec.Name != spec.Name || rec.Kind != spec.Kind {
				return api.Pool{}, holdfast.Errorf(holdfast.Exist, op, "the pool at %s is known as %q", spec.Path, rec.Name)
			}
			return s.showPool(ctx, rec), nil
		}
	}
	rec, err := s.newPool(spec)
	if err != nil {
		return api.Pool{}, err
	}
	drv, err := s.d.c.Drivers.Find(spec.Kind)
	if err != nil {
		return api.Pool{}, err
	}
	if rec.ID, err = s.identify(ctx, drv, rec); err != nil {
		return api.Pool{}, err
	}
	return s.shelve(ctx, rec)
}

// identify finds out the id of a pool that is there: pools.json may know it, else the driver is asked for whatever pool there is.
func (s *Service) identify(ctx context.Context, drv pools.Driver, rec catalog.Pool) (holdfast.PoolID, error) {
	ns, err := s.d.shelf.noteds()
	if err != nil {
		return holdfast.PoolID{}, err
	}
	for _, n := range ns {
		if n.Kind == rec.Kind && pathOf(n.Config) == pathOf(rec.Config) {
			return n.ID, nil
		}
	}
	p, err := drv.Open(ctx, s.d.shelf.envOf(holdfast.PoolID{}), holdfast.PoolID{}, rec.Config)
	if err != nil {
		return holdfast.PoolID{}, err
	}
	id := p.Traits().ID
	return id, p.Close()
}

func pathOf(config json.RawMessage) string {
	var c struct {
		Path string `json:"path"`
	}
	if json.Unmarshal(config, &c) != nil {
		return "" // a kind of pool without a path
	}
	return c.Path
}

// VerifyPool implements api.Service.
func (s *Service) VerifyPool(ctx context.Context, name string) (pools.VerifyReport, error) {
	rec, p, err := s.findPool(ctx, name)
	if err != nil {
		return pools.VerifyReport{}, err
	}
	return s.verify(ctx, rec, p, nil)
}

// verify checks a pool, or sets of it, and raises an alarm about damage.
func (s *Service) verify(ctx context.Context, rec catalog.Pool, p pools.Pool, sets []holdfast.SetID) (pools.VerifyReport, error) {
	r, err := pools.Verify(ctx, p, pools.VerifyOptions{Sets: sets})
	if err != nil {
		return r, err
	}
	if r.Damaged == nil {
		r.Damaged = []pools.Damage{}
	}
	for _, dmg := range r.Damaged[:min(len(r.Damaged), 100)] { // the report has all of them
		s.d.events.Emit(holdfast.Event{Type: holdfast.EventChunkCorrupt, Severity: holdfast.Alarm, Text: "damage in pool " + rec.Name + ": " + dmg.Text,
			Fields: map[string]string{"pool": rec.Name, "where": dmg.Where, "vm": dmg.VM, "disk": dmg.Disk}})
	}
	return r, nil
}

// CollectPool implements api.Service.
func (s *Service) CollectPool(ctx context.Context, name string, dryRun bool) (pools.CollectReport, error) {
	s.d.room.make()
	rec, p, err := s.findPool(ctx, name)
	if err != nil {
		return pools.CollectReport{}, err
	}
	c, ok := p.(pools.Collector)
	if !ok {
		return pools.CollectReport{}, holdfast.Errorf(holdfast.Unsupported, "collect", "a pool of kind %q gives its space back by itself", rec.Kind)
	}
	return c.Collect(ctx, pools.CollectOptions{DryRun: dryRun})
}

// RebuildCatalog implements api.Service. Sets that the catalog lists and the pool does not have are reported by a later check, not removed.
func (s *Service) RebuildCatalog(ctx context.Context) (api.Rebuilt, error) {
	out := api.Rebuilt{Errors: []string{}}
	recs, err := s.poolRecords()
	if err != nil {
		return out, err
	}
	if len(recs) == 0 {
		return out, holdfast.Errorf(holdfast.NotExist, "rebuild catalog", "no pool is known").
			Advise("take the pools over first: 'holdfast pool import NAME --kind KIND --path DIR'")
	}
	for _, rec := range recs {
		p, err := s.d.shelf.Pool(ctx, rec.ID)
		if err != nil {
			out.Errors = append(out.Errors, fmt.Sprintf("pool %s: %v", rec.Name, err))
			continue
		}
		r, err := ingest.Rebuild(ctx, s.d.cat, rec.ID, p)
		if err != nil {
			return out, err
		}
		out.Sets += r.Added + r.Known
		out.Added += r.Added
		if r.Damaged != nil {
			out.Errors = append(out.Errors, fmt.Sprintf("pool %s: %v", rec.Name, r.Damaged))
		}
	}
	return out, nil
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
	out := make([]api.Host, 0, len(recs))
	for _, h := range recs {
		x := api.Host{ID: h.ID.String(), Name: h.Name, State: api.HostOffline, Seen: h.LastSeen, Product: h.Info.Product, Version: h.Info.Version,
			Agent: h.Info.Name, VMs: count[h.ID]}
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
	err = s.d.cat.Update(ctx, func(tx *catalog.Tx) error { return tx.DeleteHost(rec.ID) })
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
	out := make([]api.VM, 0, len(recs))
	for _, v := range recs {
		x := api.VM{ID: v.ID.String(), Name: v.Name, Host: names[v.Host], HostID: v.Host.String(), Generation: v.Generation, State: v.State,
			Disks: []api.VMDisk{}, Skipped: s.d.jobs.Skipped(v.Host)[v.ID]}
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
