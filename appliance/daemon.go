package appliance

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/appliance/auth"
	"github.com/holdfast-backup/holdfast/appliance/job"
	"github.com/holdfast-backup/holdfast/catalog"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/ingest"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/pools"
	"github.com/holdfast-backup/holdfast/tape/library"
	tapepool "github.com/holdfast-backup/holdfast/tape/pool"
)

const (
	lockName   = "lock"           // in the data folder: one daemon at a time
	SocketName = "holdfastd.sock" // in the data folder: the local administrator's door

	// openWait is how long a start waits for the pools. Ones that take longer are offline until they are open.
	openWait = 3 * time.Second
	// stopWait is how long a stop waits for answers under way.
	stopWait = 5 * time.Second
)

// A Daemon is a running appliance.
type Daemon struct {
	c       Config
	lock    interface{ Close() error }
	cat     *catalog.Catalog
	auth    *auth.Authority
	events  *eventLog
	room    *room
	shelf   *shelf
	costs   setCosts
	jobs    *job.Engine
	ingest  *ingest.Server
	links   *wire.Acceptor
	service *Service
	surveys surveys
	later   *later
	watch   *poolWatch
	planner *planner
	measure *measures
	herald  *herald
	tapes   *library.Keeper // tape libraries, each open once

	networks networks
	mounts   *mounts

	holding  sync.Mutex // held while files of holds are written; the catalog's turn comes after it
	applying sync.Mutex // held while a site file is applied: one at a time

	files fsys.FS // the data folder
	api   *api.API

	port   net.Listener
	socket net.Listener
	ctx    context.Context // of everything that runs
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	undo   []func() error // what Close does, last first
}

// Start starts an appliance. When it returns, both doors are open. The caller ends it with Close. Errors: Busy if another daemon uses
// the folder, Corrupt if catalog or certificate authority are damaged, and what the network says about the address.
func Start(ctx context.Context, c Config) (*Daemon, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	d := &Daemon{c: c, tapes: library.NewKeeper(c.TapeSchemes)}
	if d.c.Drivers == nil {
		d.c.Drivers = append(Drivers(), tapepool.Driver(d.tapes))
	}
	d.ctx, d.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	for _, step := range []func() error{d.openData, d.openEngine, d.openHerald, d.openPools, d.openDoors} {
		if err := step(); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return d, nil
}

// openData takes the folder and opens what is in it.
func (d *Daemon) openData() error {
	files, err := fsys.CreateOS(d.c.Data)
	if err != nil {
		return err
	}
	d.files = files
	lock, err := files.Lock(lockName)
	if err != nil {
		if holdfast.KindOf(err) == holdfast.Busy {
			return holdfast.Errorf(holdfast.Busy, "start", "another holdfastd uses the folder %s", d.c.Data).Advise("stop it, or choose another folder with --data")
		}
		return err
	}
	d.undo = append(d.undo, lock.Close)
	var early []holdfast.Event
	d.room = newRoom(func(e holdfast.Event) {
		if d.events == nil { // given up before there is a catalog to tell it
			early = append(early, e)
			return
		}
		d.events.Emit(e)
	})
	d.room.watch(d.c.Data, "the catalog", dataBallast, dataLow)
	d.room.make()
	if d.cat, err = catalog.Open(files, "catalog"); err != nil {
		return err
	}
	d.undo = append(d.undo, d.cat.Close)
	if d.auth, err = auth.Open(files, "ca", d.c.Clock); err != nil {
		return err
	}
	d.events = newEventLog(d.cat, d.c.Clock, d.c.Log)
	d.undo = append(d.undo, func() error { d.events.Close(); return nil })
	for _, e := range early {
		d.events.Emit(e)
	}
	d.shelf = newShelf(d.c.Drivers, files, d.c.Data, d.costs.hear(d.events.Emit), d.c.Clock)
	d.shelf.env.Secrets = secretFile
	d.undo = append(d.undo, d.shelf.closeAll)
	return nil
}

// openEngine makes what works on runs. Runs of a daemon before this one are ended.
func (d *Daemon) openEngine() error {
	d.service = &Service{d: d, started: d.c.Clock.Now().UTC()}
	d.planner = newPlanner(d.service)
	if err := d.networks.load(d.cat); err != nil {
		return err
	}
	d.jobs = job.New(job.Options{Catalog: d.cat, Clock: d.c.Clock, Listener: d.events.Emit, Ended: d.planner.over, Route: d.route})
	d.undo = append(d.undo, func() error { d.jobs.Close(); return nil })
	if err := d.jobs.Recover(d.ctx); err != nil {
		return err
	}
	d.mounts = newMounts(d.service)
	d.undo = append(d.undo, d.mounts.closeAll)
	d.wg.Go(d.mounts.run)
	d.later = newLater(d.service)
	d.watch, d.measure = newPoolWatch(d.service), newMeasures()
	d.ingest = ingest.NewServer(ingest.Options{Catalog: d.cat, Desk: desk{d}, Clock: d.c.Clock, Listener: d.events.Emit})
	d.links = wire.NewAcceptor(wire.LinkOptions{Clock: d.c.Clock})
	d.undo = append(d.undo, func() error {
		d.cancel(errShutdown)
		d.links.Close()
		d.wg.Wait()
		d.ingest.Close()
		return nil
	})
	d.wg.Go(d.serveLinks)
	return nil
}

// openPools opens the pools the catalog knows, all at once. Each is asked about what a crash left before anybody uses it.
func (d *Daemon) openPools() error {
	if err := d.adoptPools(); err != nil {
		return err
	}
	d.shelf.opened = d.recoverPool
	recs, err := d.service.poolRecords()
	if err != nil {
		return err
	}
	for _, rec := range recs {
		d.shelf.add(rec)
		d.watchPool(rec)
	}
	d.room.make() // what a crash left half done must be finished on a full disk too
	d.wg.Go(d.keepRoom)
	late, stop := d.c.Clock.After(openWait)
	defer stop()
	d.herald.run()
	d.shelf.openAll(d.ctx, &d.wg, late)
	d.wg.Go(func() { d.recordHolds(recs) })
	d.wg.Go(d.watch.run)
	d.wg.Go(d.later.run)
	d.watch.look()
	return nil
}

func (d *Daemon) recoverPool(ctx context.Context, id holdfast.PoolID, p pools.Pool) error {
	r, err := ingest.Recover(ctx, d.cat, map[holdfast.PoolID]pools.Pool{id: p})
	if r.Adopted+r.Dropped+r.Deleted > 0 {
		d.c.Log.Info("sorted out what was under way", "pool", id.String(), "sets adopted", r.Adopted, "sets dropped", r.Dropped, "deletions finished", r.Deleted)
	}
	return err
}

// begunSetting marks a catalog that is not new.
const begunSetting = "begun"

// adoptPools brings the pools back that pools.json names into a catalog that is new although there are some: the old one was lost.
func (d *Daemon) adoptPools() error {
	ns, err := d.shelf.noteds()
	if err != nil {
		return err
	}
	return d.cat.Update(d.ctx, func(tx *catalog.Tx) error {
		_, err := tx.Setting(begunSetting)
		if err == nil || !errors.Is(err, holdfast.NotExist) {
			return err
		}
		for _, n := range ns {
			d.c.Log.Warn("the catalog is new, but there is a pool: run 'holdfast catalog rebuild'", "pool", n.Name)
			if err := tx.PutPool(catalog.Pool{ID: n.ID, Name: n.Name, Kind: n.Kind, Config: n.Config, Created: n.Created, State: catalog.PoolReady}); err != nil {
				return err
			}
		}
		holds, err := readHolds(d.files, holdsFile)
		if err != nil { // the pools have them too
			d.c.Log.Error("holds cannot be read from the data folder", "error", err, "advice", holdfast.HintOf(err))
		}
		if _, err := adoptHolds(tx, holds, d.c.Clock.Now()); err != nil {
			return err
		}
		return tx.PutSetting(begunSetting, []byte("true"))
	})
}

// openDoors opens the socket and the port.
func (d *Daemon) openDoors() error {
	d.api = api.New(api.Options{Service: d.service, Agents: d.service, Clock: d.c.Clock, Version: d.c.Version, Refused: d.refusedRequest})
	var err error
	if d.port, err = net.Listen("tcp", d.c.Listen); err != nil {
		return holdfast.Errorf(holdfast.Busy, "open port", "%w", err).Advise("is another program on this port? choose one with --listen HOST:PORT")
	}
	d.undo = append(d.undo, closed(d.port.Close))
	path := filepath.Join(d.c.Data, SocketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return holdfast.Errorf(holdfast.Internal, "open socket", "%w", err)
	}
	if d.socket, err = net.Listen("unix", path); err != nil {
		return holdfast.Errorf(holdfast.Invalid, "open socket", "%w", err).Advise("a data folder with a shorter path may help: a socket's path has at most 107 characters")
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(holdfast.Errorf(holdfast.Internal, "open socket", "%w", err), d.socket.Close())
	}
	d.serveSocket()
	d.servePort()
	d.wg.Go(d.planner.run) // last: a job that is due finds everything there
	return nil
}

// closed makes closing what is closed already no error.
func closed(f func() error) func() error {
	return func() error {
		if err := f(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// Addr returns the address of the port as it can be dialled from this machine's network.
func (d *Daemon) Addr() string { return d.port.Addr().String() }

// Service returns what the API calls, for programs that run an appliance inside themselves.
func (d *Daemon) Service() *Service { return d.service }

// Close stops the appliance: no new work, sessions are cut (agents come back when it is up again), pools and catalog are closed.
func (d *Daemon) Close() error {
	if d.jobs != nil {
		d.jobs.Close() // first: what agents say of sessions that are cut is not how their tasks went
	}
	d.cancel(errShutdown)
	var errs []error
	for i := len(d.undo) - 1; i >= 0; i-- {
		errs = append(errs, d.undo[i]())
	}
	d.undo = nil
	return errors.Join(errs...)
}

// serveLinks serves each link of agents until the daemon stops.
func (d *Daemon) serveLinks() {
	for {
		link, err := d.links.Accept(d.ctx)
		if err != nil {
			return // the daemon stops
		}
		d.wg.Go(func() {
			ctx, cancel := context.WithCancelCause(d.ctx)
			defer cancel(nil)
			ctx = context.WithValue(ctx, cancelKey{}, cancel)
			if err := d.ingest.ServeLink(ctx, link, link.Peer()); err != nil {
				d.c.Log.Warn("a session with an agent failed", "host", link.Peer().String(), "error", err)
				if holdfast.KindOf(err) == holdfast.Permission {
					d.refusedAt("host "+link.Peer().String(), err)
				}
			}
		})
	}
}

// cancelKey is the context key of the function that ends a session's link.
type cancelKey struct{}
