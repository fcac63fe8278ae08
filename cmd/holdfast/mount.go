package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/mount"
	"github.com/holdfast-backup/holdfast/nbd"
)

const (
	renewWait  = 10 * time.Second // how long one renewal waits to hear of the mount's end
	renewAgain = time.Second      // after one that failed
	maxRenews  = 2                // that may fail in a row: then the daemon is gone, and does not know the mount when it is back
)

const mountLong = `Use a set without restoring it: its disks are readable at once, and the pool is read where somebody reads.

With --dir the disks appear as files NAME.raw of a folder (Linux), with the VM's configuration files beside them; losetup, mount -o loop,ntfs-3g
and qemu can use them. With --socket or --listen they are served over NBD, each under its number and its name, the first also under no name:
nbd-client, qemu and nbdcopy can use them. With --writable --scratch DIR a client may write: what it writes goes to a file in DIR that is thrown
away at the end, and never to the pool.

The command runs until it is interrupted, the folder is unmounted, or 'holdfast mount end ID' is called. Until then the set is held: it is
neither deleted nor collected. A command that is killed holds it for a minute at most.`

type mounting struct {
	disks       []int
	dir         string
	socket      string
	listen      string
	writable    bool
	scratch     string
	cache       string
	allowOthers bool
}

func (a *app) mountCmd() *cobra.Command {
	var x mounting
	c := &cobra.Command{
		Use:     "mount SET (--dir DIR | --socket PATH | --listen HOST:PORT)",
		Short:   "Use a set's disks at once, without a restore: as files or over NBD",
		Long:    mountLong + "\n\n" + cli.ExitHelp,
		Example: "  holdfast mount 5f0c2a1e --dir /mnt/point\n  holdfast mount 5f0c2a1e --disk 0 --socket /run/disk.sock --writable --scratch /var/tmp",
		Args:    cobra.ExactArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return a.mount(c.Context(), args[0], x) },
	}
	f := c.Flags()
	f.IntSliceVar(&x.disks, "disk", nil, "only this disk, as 'holdfast set show' numbers it; may be repeated")
	f.StringVar(&x.dir, "dir", "", "show the disks as files of this empty folder (Linux)")
	f.StringVar(&x.socket, "socket", "", "serve the disks over NBD on this unix socket")
	f.StringVar(&x.listen, "listen", "", "serve the disks over NBD on this loopback address, HOST:PORT; whoever has an account on this machine can read them")
	f.BoolVar(&x.writable, "writable", false, "over NBD: let clients write; what they write is thrown away")
	f.StringVar(&x.scratch, "scratch", "", "folder for what clients write")
	f.StringVar(&x.cache, "cache", "128MiB", "memory for what was read, of each disk")
	f.BoolVar(&x.allowOthers, "allow-other", false, "with --dir: let other users read the files")
	c.AddCommand(a.mountList(), a.mountEnd(), a.mountWatch())
	return c
}

func (a *app) mountList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List mounts", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var ms []api.Mount
		if err := a.call(c.Context(), "GET", "/v1/mounts", nil, &ms); err != nil {
			return err
		}
		return a.print(ms, func(p *printer) {
			if len(ms) == 0 {
				p.line("No set is mounted; next: holdfast mount SET --dir DIR")
				return
			}
			p.row("ID", "VM", "POINT IN TIME", "SET", "HOW", "WRITABLE", "PLACE", "SINCE")
			for _, m := range ms {
				p.row(m.ID, m.VM, when(m.Time), m.Set, m.How, m.Writable, m.Place, when(m.Since))
			}
		})
	}}
}

func (a *app) mountEnd() *cobra.Command {
	return &cobra.Command{Use: "end ID", Short: "End a mount; what was written to an overlay is thrown away", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var m api.Mount
		if err := a.call(c.Context(), "DELETE", "/v1/mounts/"+url.PathEscape(args[0]), nil, &m); err != nil {
			return err
		}
		return a.print(m, func(p *printer) {
			p.line("The mount of %s at %s has ended; its set is not held any more.", cli.Clean(m.VM), cli.Clean(m.Place))
		})
	}}
}

// check refuses flags that do not go together, and returns how and where the set will be mounted, and the memory for what was read.
func (x *mounting) check() (spec api.MountSpec, cache int64, err error) {
	bad := func(advice, format string, args ...any) (api.MountSpec, int64, error) {
		return spec, 0, holdfast.Errorf(holdfast.Invalid, "mount", format, args...).Advise("%s", advice)
	}
	places := 0
	for _, p := range []string{x.dir, x.socket, x.listen} {
		if p != "" {
			places++
		}
	}
	if places != 1 {
		return bad("give one of --dir DIR, --socket PATH and --listen HOST:PORT", "where is the set to be mounted?")
	}
	if x.writable != (x.scratch != "") || x.writable && x.dir != "" {
		return bad("use --writable --scratch DIR with --socket or --listen", "--writable and --scratch go together, and with NBD")
	}
	spec = api.MountSpec{How: "nbd", Writable: x.writable}
	switch {
	case x.dir != "":
		spec.How = "files"
		spec.Place, err = filepath.Abs(x.dir)
	case x.socket != "":
		spec.Place, err = filepath.Abs(x.socket)
	default:
		spec.Place = x.listen
		host, _, serr := net.SplitHostPort(x.listen)
		if ip := net.ParseIP(host); serr != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return bad("use 127.0.0.1:PORT; port 0 chooses a free one", "%q is not an address of this machine alone: NBD has no password here", x.listen)
		}
	}
	if err != nil {
		return bad("name the place by its whole path", "%v", err)
	}
	if cache, err = cli.ParseSize(x.cache); err == nil && cache < mount.MinCache {
		return bad("leave --cache out", "a cache of %s is too small: at least %s are needed", cli.Size(cache), cli.Size(mount.MinCache))
	}
	return spec, cache, err
}

// mount holds the set at the daemon, serves its disks, and ends both together.
func (a *app) mount(ctx context.Context, set string, x mounting) (err error) {
	spec, cache, err := x.check()
	if err != nil {
		return err
	}
	spec.Set = set
	var l net.Listener
	if spec.How == "nbd" {
		if l, err = x.open(); err != nil {
			return err
		}
		defer l.Close() // closed already where it was served
		if x.listen != "" {
			spec.Place = l.Addr().String()
		}
	}
	var m api.Mount
	if err := a.call(ctx, "POST", "/v1/mounts", spec, &m); err != nil {
		return err
	}
	defer func() { // whatever happened, the set is let go of; one that has ended is not there any more
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		eerr := a.call(ctx, "DELETE", "/v1/mounts/"+m.ID, nil, nil)
		if err == nil && eerr != nil && !errors.Is(eerr, holdfast.NotExist) {
			err = eerr
		}
	}()
	chosen, err := x.choose(&m)
	if err != nil {
		return err
	}
	life, end := context.WithCancelCause(ctx)
	renewed := make(chan struct{})
	defer func() { end(nil); <-renewed }()
	src := newMountSource(a, m.ID)
	defer src.close()
	go func() {
		defer close(renewed)
		a.renewMount(life, end, m.ID)
	}()
	var disks []*mount.Disk
	for _, d := range chosen {
		disk := mount.NewDisk(life, mount.Options{Source: src, No: d.No, Size: d.Size, Cache: cache})
		defer disk.Close()
		disks = append(disks, disk)
	}
	if spec.How == "files" {
		err = a.showFiles(life, &m, x, src, chosen, disks)
	} else {
		err = a.serveNBD(life, l, &m, x, chosen, disks)
	}
	if cause := context.Cause(life); err == nil && ctx.Err() == nil && cause != nil && !errors.Is(cause, errEnded) {
		err = cause
	}
	return err
}

// choose returns the disks that were asked for, all if none was.
func (x *mounting) choose(m *api.Mount) ([]api.MountDisk, error) {
	if len(x.disks) == 0 {
		return m.Disks, nil
	}
	var out []api.MountDisk
	for _, no := range x.disks {
		if no < 0 || no >= len(m.Disks) {
			return nil, holdfast.Errorf(holdfast.NotExist, "mount", "set %s has %d disks, numbered from 0; there is no disk %d", m.Set, len(m.Disks), no).
				Advise("'holdfast set show %s' lists its disks", m.Set)
		}
		out = append(out, m.Disks[no])
	}
	return out, nil
}

// errEnded is the good end of a mount that somebody else ended.
var errEnded = holdfast.Errorf(holdfast.Cancelled, "mount", "the mount was ended")

// renewMount keeps the lease, and ends the mount's life when the daemon has ended it, or is gone.
func (a *app) renewMount(ctx context.Context, end context.CancelCauseFunc, id string) {
	failed := 0
	for ctx.Err() == nil {
		var m api.Mount
		err := a.call(ctx, "POST", "/v1/mounts/"+id+"/renew?wait_ms="+strconv.FormatInt(renewWait.Milliseconds(), 10), nil, &m)
		switch {
		case err == nil && m.Ended:
			end(errEnded)
		case err == nil:
			failed = 0
			continue
		case errors.Is(err, holdfast.NotExist):
			end(holdfast.Errorf(holdfast.Offline, "mount", "the daemon does not know the mount any more: it was started again").Advise("mount the set again"))
		default:
			if failed++; failed >= maxRenews {
				end(holdfast.Errorf(holdfast.Offline, "mount", "the daemon does not answer: %w", err).Advise("mount the set again when holdfastd is running"))
			}
		}
		late, stop := clock.System.After(renewAgain)
		select {
		case <-late:
		case <-ctx.Done():
		}
		stop()
	}
}

// mountReady says that a mount can be used, in the first line that is printed.
type mountReady struct {
	api.Mount
	URIs []string `json:"uris,omitempty"`
}

func (a *app) sayMounted(m *api.Mount, uris []string, disks []api.MountDisk) error {
	return a.print(mountReady{*m, uris}, func(p *printer) {
		p.line("Mount %s: %s at %s", m.ID, cli.Clean(m.VM), m.Time.Local().Format("2006-01-02 15:04:05"))
		for _, d := range disks {
			p.row(fmt.Sprintf("disk %d", d.No), d.Name, cli.Size(d.Size))
		}
		for _, u := range uris {
			p.line("ready %s", u)
		}
		p.line("Ctrl-C, or 'holdfast mount end %s', ends it.", m.ID)
	})
}

// open takes the address that disks are served on.
func (x *mounting) open() (net.Listener, error) {
	if x.listen != "" {
		return nbd.Listen("tcp:" + x.listen)
	}
	return nbd.Listen("unix:" + x.socket)
}

// serveNBD serves the disks until the mount's life is over.
func (a *app) serveNBD(ctx context.Context, l net.Listener, m *api.Mount, x mounting, chosen []api.MountDisk, disks []*mount.Disk) (err error) {
	var exports, named []nbd.Export
	var uris []string
	for i, d := range chosen {
		e := nbd.Export{Name: strconv.Itoa(d.No), Description: cli.Clean(m.VM + " " + d.Name), Backend: disks[i], ReadOnly: true, MultiConn: true}
		if x.writable {
			o, err := mount.NewOverlay(disks[i], x.scratch)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, o.Close()) }()
			e.Backend, e.ReadOnly = o, false
		}
		exports = append(exports, e)
		if e.Name = d.Name; len(d.Name) <= 255 && d.Name != "" {
			named = append(named, e)
		}
		uri := "nbd://" + l.Addr().String() + "/" + strconv.Itoa(d.No)
		if x.socket != "" {
			uri = "nbd+unix:///" + strconv.Itoa(d.No) + "?socket=" + m.Place
		}
		uris = append(uris, uri)
	}
	for _, e := range named { // a name that another one has already is left out
		if !hasExport(exports, e.Name) {
			exports = append(exports, e)
		}
	}
	if err := a.sayMounted(m, uris, chosen); err != nil {
		return err
	}
	s := &nbd.Server{OnError: a.mountError}
	return s.Serve(ctx, l, exports...)
}

func hasExport(es []nbd.Export, name string) bool {
	for _, e := range es {
		if e.Name == name {
			return true
		}
	}
	return false
}

func (a *app) mountError(err error) { fmt.Fprintf(a.errw, "error: %s\n", err) }
