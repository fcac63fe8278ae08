package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent"
	"github.com/holdfast-backup/holdfast/agent/lab"
	"github.com/holdfast-backup/holdfast/agent/transport"
	"github.com/holdfast-backup/holdfast/appliance"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/clock"
)

// Options steers Run.
type Options struct {
	Out  io.Writer // gets the table
	JSON bool      // the table as JSON instead
	VHDX string    // use a copy of this disk; "": make one
	Dir  string    // the folder to work in, which must be there; "": the system's for temporary files
}

const (
	hostName = "demo-host"
	poolName = "demo-pool"
	vmName   = "demo-vm"
	changes  = 48        // extents written between full and incremental
	maxWrite = 256 << 10 // bytes of one
	seed     = 20261122
)

// A Step is one line of the table.
type Step struct {
	Name   string  `json:"step"`
	Took   float64 `json:"seconds"`
	Read   int64   `json:"read"`   // by the agent, -1 where it means nothing
	Sent   int64   `json:"sent"`   // on the wire
	Stored int64   `json:"stored"` // new in the pool
	Result string  `json:"result"`
}

// demo is one demo at work.
type demo struct {
	o      Options
	dir    string
	daemon *appliance.Daemon
	host   *lab.Host
	steps  []Step
	first  string // set of the full
	second string // set of the incremental
}

// Run runs the demo. It ends early with ctx. Whatever happens, nothing is left in the file system.
func Run(ctx context.Context, o Options) (err error) {
	dir, err := os.MkdirTemp(o.Dir, "holdfast-demo-")
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, "demo", "%w", err).Advise("is there room for temporary files?")
	}
	d := &demo{o: o, dir: dir}
	defer func() {
		if e := os.RemoveAll(dir); e != nil {
			err = errors.Join(err, holdfast.Errorf(holdfast.Internal, "demo", "clean up: %w", e))
		}
	}()
	if err := d.run(ctx); err != nil {
		if ctx.Err() != nil {
			return holdfast.Errorf(holdfast.Cancelled, "demo", "interrupted; everything is cleaned up")
		}
		return err
	}
	return d.print()
}

func (d *demo) run(ctx context.Context) (err error) {
	disk := filepath.Join(d.dir, "original.vhdx")
	d.say("A virtual disk is made in %s …", d.dir)
	if d.o.VHDX != "" {
		err = copyFile(ctx, d.o.VHDX, disk)
	} else {
		err = makeDisk(ctx, disk)
	}
	if err != nil {
		return err
	}
	stop, err := d.start(ctx)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	if _, err := d.host.NewVM(ctx, lab.CreateOptions{Name: vmName, Disks: []string{disk}}); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{d.full, d.change, d.incremental, d.clone, d.restore, d.older, d.verify} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// start starts the appliance and an enrolled agent. stop is never nil.
func (d *demo) start(ctx context.Context) (stop func() error, err error) {
	var undo []func() error
	stop = func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return errors.Join(errs...)
	}
	d.daemon, err = appliance.Start(ctx, appliance.Config{Data: filepath.Join(d.dir, "appliance"), Listen: "127.0.0.1:0", Version: "demo"})
	if err != nil {
		return stop, err
	}
	undo = append(undo, d.daemon.Close)
	svc := d.daemon.Service()
	if _, err := svc.CreatePool(ctx, api.PoolSpec{Name: poolName, Kind: "dedup", Path: filepath.Join(d.dir, "pool")}); err != nil {
		return stop, err
	}
	key, err := svc.EnrollHost(ctx, hostName)
	if err != nil {
		return stop, err
	}
	id, err := transport.Enroll(ctx, transport.EnrollOptions{Server: d.daemon.Addr(), Key: key.Key, Name: hostName, Version: "demo"})
	if err != nil {
		return stop, err
	}
	labDir := filepath.Join(d.dir, "lab")
	if err := os.Mkdir(labDir, 0o700); err != nil {
		return stop, holdfast.Errorf(holdfast.Internal, "demo", "%w", err)
	}
	if d.host, err = lab.Open(labDir); err != nil {
		return stop, err
	}
	client, err := transport.New(id, nil)
	if err != nil {
		return stop, err
	}
	ag, err := agent.New(agent.Options{Hypervisor: d.host, Control: client, Dir: filepath.Join(d.dir, "agent"), Host: id.Host, HostName: id.Name, Version: "demo"})
	if err != nil {
		return stop, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { _ = ag.Run(running) }) // its error is that it was asked to stop
	undo = append(undo, func() error {
		cancel()
		wg.Wait()
		client.Close()
		return nil
	})
	return stop, d.online(ctx)
}

// online waits until the appliance sees the agent.
func (d *demo) online(ctx context.Context) error {
	for seq := uint64(0); ; {
		hosts, err := d.daemon.Service().Hosts(ctx)
		if err != nil {
			return err
		}
		if len(hosts) == 1 && hosts[0].State == api.HostOnline {
			return nil
		}
		for e, err := range d.daemon.Service().Events(ctx, seq) {
			if err != nil {
				return err
			}
			if seq = e.Seq; e.Type == holdfast.EventHostOnline {
				break
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

func (d *demo) say(format string, args ...any) {
	if !d.o.JSON {
		fmt.Fprintf(d.o.Out, format+"\n", args...)
	}
}

// step times one step and adds it to the table.
func (d *demo) step(name string, do func() (Step, error)) error {
	d.say("%s …", name)
	start := clock.System.Now()
	s, err := do()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.Name, s.Took = name, clock.System.Now().Sub(start).Seconds()
	d.steps = append(d.steps, s)
	return nil
}

// follow waits for a run and returns its tasks' set.
func (d *demo) follow(ctx context.Context, r api.Run, err error) (string, error) {
	if r, err = d.await(ctx, r, err); err != nil {
		return "", err
	}
	return r.Tasks[0].Set, nil
}

// await waits for a run, which must come to a good end.
func (d *demo) await(ctx context.Context, r api.Run, err error) (api.Run, error) {
	for err == nil && !api.Final(r.State) {
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
		r, err = d.daemon.Service().Run(ctx, r.ID, 5*time.Second)
	}
	switch {
	case err != nil || r.State == api.StateDone:
		return r, err
	case r.Error != nil:
		return r, r.Error.Err()
	}
	return r, holdfast.Errorf(holdfast.Internal, "demo", "the run ended as %s", r.State)
}

// backup backs a VM up and returns the set and its line of the table.
func (d *demo) backup(ctx context.Context, vm string) (api.Set, Step, error) {
	r, err := d.daemon.Service().Backup(ctx, api.BackupSpec{VMs: []string{vm}, Pool: poolName})
	id, err := d.follow(ctx, r, err)
	if err != nil {
		return api.Set{}, Step{}, err
	}
	s, err := d.daemon.Service().Set(ctx, id)
	return s, Step{Read: s.Read, Sent: s.Sent, Stored: s.Stored}, err
}

func (d *demo) full(ctx context.Context) error {
	return d.step("full backup", func() (Step, error) {
		s, st, err := d.backup(ctx, vmName)
		d.first = s.ID
		st.Result = fmt.Sprintf("a disk of %s is safe", size(s.Logical))
		return st, err
	})
}

// change writes to the live disk the way NBD clients do: each write is tracked.
func (d *demo) change(ctx context.Context) error {
	return d.step("the VM changes its disk", func() (st Step, err error) {
		disk, err := d.host.OpenDisk(ctx, vmName, 0)
		if err != nil {
			return st, err
		}
		defer func() { err = errors.Join(err, disk.Close()) }()
		rng := rand.New(rand.NewPCG(seed, 2))
		total := int64(0)
		for range changes {
			n := min(int64(1+rng.IntN(maxWrite/4096))*4096, disk.Size()&^511)
			off := rng.Int64N(disk.Size()-n+1) &^ 511
			b := make([]byte, n)
			fillRandom(rng, b)
			if _, err := disk.WriteAt(b, off); err != nil {
				return st, err
			}
			total += n
		}
		return Step{Read: -1, Sent: -1, Stored: -1, Result: fmt.Sprintf("%d writes, %s", changes, size(total))}, disk.Flush()
	})
}

func (d *demo) incremental(ctx context.Context) error {
	return d.step("incremental backup", func() (Step, error) {
		s, st, err := d.backup(ctx, vmName)
		d.second = s.ID
		st.Result = "only what changed was read"
		if s.Kind != "incremental" {
			st.Result = "a " + s.Kind + " set"
		}
		return st, err
	})
}

func (d *demo) clone(ctx context.Context) error {
	return d.step("a clone of the VM, full backup", func() (Step, error) {
		if _, err := d.host.Clone(ctx, vmName, vmName+"-clone"); err != nil {
			return Step{}, err
		}
		_, st, err := d.backup(ctx, vmName+"-clone")
		st.Result = "what the pool has is not sent again"
		return st, err
	})
}

// restore brings the newest point in time back as a VM and compares it with the live disk.
func (d *demo) restore(ctx context.Context) error {
	dir := filepath.Join(d.dir, "lab", "restored")
	err := d.step("restore as a new VM", func() (Step, error) {
		r, err := d.daemon.Service().Restore(ctx, api.RestoreSpec{Set: d.second, Host: hostName, Dir: dir, Name: "restored"})
		_, err = d.follow(ctx, r, err)
		return Step{Read: -1, Sent: -1, Stored: -1, Result: "a VM in its own folder"}, err
	})
	if err != nil {
		return err
	}
	return d.step("compare with the live disk", func() (st Step, err error) {
		live, err := d.host.OpenDisk(ctx, vmName, 0)
		if err != nil {
			return st, err
		}
		defer func() { err = errors.Join(err, live.Close()) }()
		n, err := d.sameAs(ctx, live, dir)
		return same(n), err
	})
}

// older brings the first point in time back, which the live disk no longer shows, and compares it with the original file.
func (d *demo) older(ctx context.Context) error {
	return d.step("restore the older point, compare", func() (st Step, err error) {
		dir := filepath.Join(d.dir, "lab", "older")
		r, err := d.daemon.Service().Restore(ctx, api.RestoreSpec{Set: d.first, Host: hostName, Dir: dir, Name: "older"})
		if _, err := d.follow(ctx, r, err); err != nil {
			return st, err
		}
		original, err := openVHDX(filepath.Join(d.dir, "original.vhdx"))
		if err != nil {
			return st, err
		}
		defer func() { err = errors.Join(err, original.Close()) }()
		n, err := d.sameAs(ctx, original, dir)
		return same(n), err
	})
}

func same(n int64) Step {
	return Step{Read: -1, Sent: -1, Stored: -1, Result: fmt.Sprintf("all %s identical", size(n))}
}

func (d *demo) verify(ctx context.Context) error {
	return d.step("verify the pool", func() (Step, error) {
		run, err := d.daemon.Service().VerifyPool(ctx, poolName)
		run, err = d.await(ctx, run, err)
		var r api.VerifyReport
		if err == nil {
			err = json.Unmarshal(run.Result, &r)
		}
		return Step{Read: -1, Sent: -1, Stored: -1, Result: fmt.Sprintf("%d chunks are as written", r.Chunks)}, err
	})
}

// print shows the table.
func (d *demo) print() error {
	if d.o.JSON {
		b, err := json.MarshalIndent(d.steps, "", "  ")
		if err == nil {
			_, err = fmt.Fprintf(d.o.Out, "%s\n", b)
		}
		if err != nil {
			return holdfast.Errorf(holdfast.Internal, "demo", "%w", err)
		}
		return nil
	}
	d.say("\n%-33s %8s %11s %11s %11s  %s", "STEP", "TIME", "READ", "SENT", "STORED", "RESULT")
	for _, s := range d.steps {
		d.say("%-33s %7.2fs %11s %11s %11s  %s", s.Name, s.Took, size(s.Read), size(s.Sent), size(s.Stored), s.Result)
	}
	d.say("\nEverything came back bit for bit. Nothing is left of the demo; README.md says how to do it for real.")
	return nil
}

// size shows bytes for people; -1 is nothing.
func size(n int64) string {
	switch {
	case n < 0:
		return ""
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
