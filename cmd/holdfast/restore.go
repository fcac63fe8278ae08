package main

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/restore"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/internal/direct"
)

func (a *app) restoreCmd() *cobra.Command {
	return cli.Group("restore", "Bring virtual machines and disks back", a.restoreVM(), a.restoreDisk(), a.restoreExport(), a.restoreList(), a.restoreCancel())
}

func (a *app) restoreExport() *cobra.Command {
	var x export
	c := &cobra.Command{
		Use:   "export SET --disk N --format raw|vhdx --output FILE",
		Short: "Write one disk of a set to a file on this machine",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			x.set = args[0]
			r, err := a.export(c.Context(), x)
			if err != nil {
				return err
			}
			return a.print(r, func(p *printer) {
				p.line("Disk %d (%s, %s) is in %s; %s of data, every byte checked.", r.Disk, cli.Clean(r.Name), cli.Size(r.Size), r.Output, cli.Size(r.Written))
			})
		},
	}
	c.Flags().IntVar(&x.disk, "disk", 0, "number of the disk, as 'holdfast set show' lists it")
	c.Flags().StringVar(&x.format, "format", "raw", "raw or vhdx")
	c.Flags().StringVar(&x.output, "output", "", "file to make; it must not be there yet")
	_ = c.MarkFlagRequired("output") // fails only for a flag that is not there
	return c
}

type export struct {
	set, format, output string
	disk                int
}

// exported is what an export prints.
type exported struct {
	Set     string `json:"set"`
	Disk    int    `json:"disk"`
	Name    string `json:"name"`
	Size    int64  `json:"size"`
	Written int64  `json:"written"`
	Format  string `json:"format"`
	Output  string `json:"output"`
}

// partialSuffix marks a file that an export has not finished.
const partialSuffix = ".partial"

// export writes a disk under a name of its own and gives it its right name when it is complete and durable.
func (a *app) export(ctx context.Context, x export) (exported, error) {
	const op = "export"
	if x.format != "raw" && x.format != "vhdx" {
		return exported{}, holdfast.Errorf(holdfast.Invalid, op, "unknown format %q", x.format).Advise("use --format raw or --format vhdx")
	}
	if x.disk < 0 {
		return exported{}, holdfast.Errorf(holdfast.Invalid, op, "no disk has the number %d", x.disk).Advise("'holdfast set show %s' lists the disks", x.set)
	}
	if _, err := os.Lstat(x.output); err == nil {
		return exported{}, holdfast.Errorf(holdfast.Exist, op, "%s is there already", x.output).Advise("choose another name, or remove the file")
	}
	resp, err := a.open(ctx, "GET", "/v1/sets/"+url.PathEscape(x.set)+"/disks/"+strconv.Itoa(x.disk)+"/parcels", nil)
	if err != nil {
		return exported{}, err
	}
	defer resp.Body.Close() // read to its end, or given up
	in := wire.NewStreamReader(resp.Body)
	opened, disk, err := readOpened(in)
	if err != nil {
		return exported{}, err
	}
	r := exported{Set: opened.Manifest.ID.String(), Disk: x.disk, Name: disk.Name, Size: disk.Size, Format: x.format, Output: x.output}
	out, err := createOutput(x.format, x.output+partialSuffix, *disk)
	if err != nil {
		return r, err
	}
	r.Written, err = a.fill(ctx, in, out, holdfast.Domain{Key: [32]byte(opened.DomainKey)}, *disk)
	if err == nil {
		err = out.Finish()
	}
	if err == nil {
		err = rename(x.output)
	}
	if err != nil {
		return r, errors.Join(err, out.Abort())
	}
	return r, nil
}

// readOpened reads the head of a parcel stream: what will be delivered.
func readOpened(in *wire.StreamReader) (wire.SetOpened, *holdfast.Disk, error) {
	m, err := in.Next()
	if err != nil {
		return wire.SetOpened{}, nil, err
	}
	defer m.Release()
	o, ok := m.Body.(wire.SetOpened)
	if !ok || len(o.DomainKey) != 32 || len(o.Manifest.Disks) != 1 {
		return o, nil, holdfast.Errorf(holdfast.Internal, "read stream", "the daemon's stream does not begin as it should").
			Advise("are holdfast and holdfastd of the same version?")
	}
	return o, &o.Manifest.Disks[0], nil
}

// fill places the parcels of the stream, each byte verified, until the stream says that it is complete.
func (a *app) fill(ctx context.Context, in *wire.StreamReader, out output, dom holdfast.Domain, d holdfast.Disk) (int64, error) {
	var meter holdfast.Meter
	place := restore.New(dom, out, d.Size, restore.Options{Meter: &meter})
	v := a.newView()
	err := a.take(ctx, in, place, func() {
		if a.json {
			return
		}
		s := meter.Sample()
		v.show(api.Run{Tasks: []api.Task{{VM: d.Name, Host: "this machine", State: api.StateRunning, Disks: []api.Progress{{Name: d.Name, Sample: s}}}}})
	})
	n, cerr := place.Close()
	if err == nil || cerr != nil {
		err = cerr // what went wrong with the disk is why taking parcels stopped
	}
	return n, err
}

func (a *app) take(ctx context.Context, in *wire.StreamReader, place *restore.Disk, show func()) error {
	delivered := false
	last := clock.System.Now()
	for {
		m, err := in.Next()
		switch {
		case errors.Is(err, io.EOF) && delivered:
			return nil
		case errors.Is(err, io.EOF):
			return holdfast.Errorf(holdfast.Corrupt, "read stream", "it ended before everything was delivered")
		case ctx.Err() != nil:
			return holdfast.Errorf(holdfast.Cancelled, "export", "interrupted; nothing was kept")
		case err != nil:
			return err
		}
		switch m.Type {
		case wire.TypeParcel:
			if err := place.Put(ctx, m.Body.(*holdfast.Parcel)); err != nil {
				return err
			}
		case wire.TypeDelivered:
			delivered = true
			m.Release()
		default:
			m.Release()
			return holdfast.Errorf(holdfast.Internal, "read stream", "a message of type %v was not expected", m.Type)
		}
		if now := clock.System.Now(); now.Sub(last) >= frameEvery {
			last = now
			show()
		}
	}
}

// An output is a disk file under construction.
type output interface {
	io.WriterAt
	Finish() error // makes the file whole and durable
	Abort() error  // removes the file; a no-op where it is gone
}

func createOutput(format, path string, d holdfast.Disk) (output, error) {
	if format == "vhdx" {
		o := vhdx.CreateOptions{Size: d.Size, Subformat: "dynamic", LogicalSector: d.LogicalSector, PhysicalSector: d.PhysicalSector}
		if d.Format == "vhdx" {
			o.BlockSize = d.BlockSize
		}
		w, err := vhdx.Create(path, o)
		if err != nil {
			return nil, leftover(err, path)
		}
		return &vhdxFile{w, path}, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, leftover(fileError(err), path)
	}
	if err := f.Truncate(d.Size); err != nil {
		return nil, errors.Join(fileError(err), f.Close(), os.Remove(path))
	}
	return &rawFile{File: f, d: direct.New(f, true)}, nil
}

// leftover explains a file that an earlier export left.
func leftover(err error, path string) error {
	if holdfast.KindOf(err) != holdfast.Exist {
		return err
	}
	return holdfast.Errorf(holdfast.Exist, "export", "%s is there already: another export runs, or one was killed", path).
		Advise("if no export runs, remove the file")
}

func fileError(err error) error {
	kind := holdfast.Internal
	switch {
	case errors.Is(err, os.ErrExist):
		kind = holdfast.Exist
	case errors.Is(err, os.ErrNotExist):
		kind = holdfast.NotExist
	case errors.Is(err, os.ErrPermission):
		kind = holdfast.Permission
	}
	return holdfast.Errorf(kind, "write output", "%w", err)
}

// A rawFile is a sparse image: what is never written reads as zeros.
type rawFile struct {
	*os.File
	d    *direct.File // large pieces go past the page cache
	done bool
}

func (f *rawFile) WriteAt(p []byte, off int64) (int, error) { return f.d.WriteAt(p, off) }

func (f *rawFile) Finish() error {
	err := f.Sync()
	f.done = true
	return errors.Join(err, f.d.Close(), f.Close())
}

func (f *rawFile) Abort() error {
	var err error
	if !f.done {
		err = errors.Join(f.d.Close(), f.Close())
	}
	return errors.Join(err, remove(f.Name()))
}

// A vhdxFile is a VHDX that is not valid before Finish.
type vhdxFile struct {
	*vhdx.Writer
	path string
}

func (f *vhdxFile) Abort() error { return errors.Join(f.Writer.Abort(), remove(f.path)) }

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fileError(err)
	}
	return nil
}

// rename gives a finished export its right name, which must still be free, durably.
func rename(path string) error {
	err := os.Link(path+partialSuffix, path)
	switch {
	case err == nil:
		err = os.Remove(path + partialSuffix)
	case !errors.Is(err, os.ErrExist): // no links here: the window between looking and renaming is the price
		if _, serr := os.Lstat(path); serr == nil {
			return fileError(os.ErrExist)
		}
		err = os.Rename(path+partialSuffix, path)
	}
	if err != nil {
		return fileError(err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fileError(err)
	}
	err = d.Sync()
	if errors.Is(err, errors.ErrUnsupported) || os.PathSeparator == '\\' {
		err = nil // folders cannot be synced here
	}
	return errors.Join(err, d.Close())
}
