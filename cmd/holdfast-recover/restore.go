package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/vhdx"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/rescue"
)

const (
	partialSuffix = ".partial"
	lineEvery     = 10 * time.Second
	minPrefix     = 8 // characters of a set's id that may stand for it
)

// An order is what to restore.
type order struct {
	set, format, output string
	disk                int
	keepGoing           bool
}

// A restored is what restore prints.
type restored struct {
	Set    string `json:"set"`
	VM     string `json:"vm"`
	Disk   int    `json:"disk"`
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	Format string `json:"format"`
	Output string `json:"output"`
	rescue.Report
}

func (a *app) restore() *cobra.Command {
	var o order
	c := &cobra.Command{
		Use:   "restore SET --disk N --format raw|vhdx --output FILE",
		Short: "Write one disk of a set to a file",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			o.set = args[0]
			if o.format != "raw" && o.format != "vhdx" {
				return holdfast.Errorf(holdfast.Invalid, "", "unknown format %q", o.format).Advise("use --format raw or --format vhdx")
			}
			if _, err := os.Lstat(o.output); err == nil {
				return holdfast.Errorf(holdfast.Exist, "", "%s is there already", o.output).Advise("choose another name, or remove the file")
			}
			p, err := a.open(c.Context())
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, p.Close()) }()
			r, err := a.run(c.Context(), p, o)
			if err != nil {
				return err
			}
			if err := a.print(r, func(w io.Writer) { r.text(w) }); err != nil {
				return err
			}
			if n := len(r.Damaged); n > 0 {
				return holdfast.Errorf(holdfast.Corrupt, "", "%d parts of the disk could not be read and are zeros", n).Advise("an older point in time may have them")
			}
			return nil
		},
	}
	c.Flags().IntVar(&o.disk, "disk", 0, "number of the disk, as list shows it")
	c.Flags().StringVar(&o.format, "format", "raw", "raw or vhdx")
	c.Flags().StringVar(&o.output, "output", "", "file to make; it must not be there yet")
	c.Flags().BoolVar(&o.keepGoing, "keep-going", false, "restore what can be read of a damaged disk; the rest stays zeros")
	_ = c.MarkFlagRequired("output") // fails only for a flag that is not there
	return c
}

func (r *restored) text(w io.Writer) {
	fmt.Fprintf(w, "Disk %d of %s (%s, %s) is in %s; %s of data, every byte checked.\n", r.Disk, cli.Clean(r.VM), cli.Clean(r.Name), cli.Size(r.Size), r.Output, cli.Size(r.Written))
	for _, d := range r.Damaged {
		fmt.Fprintf(w, "DAMAGED\t%s\tbytes %d to %d\t%s\n", cli.Clean(d.Where), d.Extent.Off, d.Extent.Off+d.Extent.Len, cli.Clean(d.Text))
	}
	for _, x := range r.Warnings {
		fmt.Fprintf(w, "WARNING\t%s\n", cli.Clean(x))
	}
}

// run restores into a file of another name and gives it its right name when it is whole.
func (a *app) run(ctx context.Context, p *rescue.Pool, o order) (*restored, error) {
	m, err := find(ctx, p, o.set)
	if err != nil {
		return nil, err
	}
	if o.disk < 0 || o.disk >= len(m.Disks) {
		return nil, holdfast.Errorf(holdfast.NotExist, "", "set %s has %d disks, numbered from 0", m.ID, len(m.Disks)).Advise("'%s list' shows them", program)
	}
	d := m.Disks[o.disk]
	r := &restored{Set: m.ID.String(), VM: m.VM.Name, Disk: o.disk, Name: d.Name, Size: d.Size, Format: o.format, Output: o.output}
	out, err := create(o.format, o.output+partialSuffix, d)
	if err != nil {
		return nil, err
	}
	r.Report, err = p.Restore(ctx, m.ID, o.disk, out, rescue.Options{KeepGoing: o.keepGoing, Progress: a.progress()})
	if err == nil {
		err = out.Finish()
	}
	if err == nil {
		err = publish(o.output)
	}
	if err != nil {
		return nil, errors.Join(err, out.Abort())
	}
	return r, nil
}

// progress returns what prints a line now and then.
func (a *app) progress() func(done, all int64) {
	if a.json {
		return nil
	}
	last := clock.System.Now()
	return func(done, all int64) {
		now := clock.System.Now()
		if now.Sub(last) < lineEvery {
			return
		}
		last = now
		if all > 0 {
			fmt.Fprintf(a.errw, "%s of %s, %d %%\n", cli.Size(done), cli.Size(all), done*100/all)
			return
		}
		fmt.Fprintf(a.errw, "%s\n", cli.Size(done))
	}
}

// find returns the set with the id, or the one whose id begins so.
func find(ctx context.Context, p *rescue.Pool, id string) (holdfast.Manifest, error) {
	var found []holdfast.Manifest
	var damage error
	for m, err := range p.Sets(ctx) {
		switch {
		case err != nil:
			damage = err
		case strings.HasPrefix(m.ID.String(), strings.ToLower(id)):
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 1 && len(id) >= minPrefix:
		return found[0], nil
	case len(found) > 1 || len(id) < minPrefix:
		return holdfast.Manifest{}, holdfast.Errorf(holdfast.Invalid, "", "%d sets begin with %q", len(found), id).Advise("write more of the id; '%s list' shows the sets", program)
	case damage != nil:
		return holdfast.Manifest{}, damage
	}
	return holdfast.Manifest{}, holdfast.Errorf(holdfast.NotExist, "", "there is no set %s", id).Advise("'%s list' shows the sets", program)
}

// An output is a disk file under construction.
type output interface {
	io.WriterAt
	Finish() error // makes the file whole and durable
	Abort() error  // removes the file; a no-op where it is gone
}

func create(format, path string, d holdfast.Disk) (output, error) {
	if format == "vhdx" {
		o := vhdx.CreateOptions{Size: d.Size, Subformat: "dynamic", LogicalSector: d.LogicalSector, PhysicalSector: d.PhysicalSector}
		if d.Format == "vhdx" {
			o.BlockSize = d.BlockSize
		}
		w, err := vhdx.Create(path, o)
		if err != nil {
			return nil, err
		}
		return vhdxFile{w, path}, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fileError(err)
	}
	if err := f.Truncate(d.Size); err != nil {
		return nil, errors.Join(fileError(err), f.Close(), os.Remove(path))
	}
	return &rawFile{File: f}, nil
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
	return holdfast.Errorf(kind, "write output", "%w", err).Advise("a file with the suffix %s is what a restore that was killed left; remove it", partialSuffix)
}

// A rawFile is a sparse image.
type rawFile struct {
	*os.File
	done bool
}

func (f *rawFile) Finish() error {
	f.done = true
	return errors.Join(f.Sync(), f.Close())
}

func (f *rawFile) Abort() error {
	var err error
	if !f.done {
		err = f.Close()
	}
	return errors.Join(err, remove(f.Name()))
}

// A vhdxFile is a VHDX that is not valid before Finish.
type vhdxFile struct {
	*vhdx.Writer
	path string
}

func (f vhdxFile) Abort() error { return errors.Join(f.Writer.Abort(), remove(f.path)) }

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fileError(err)
	}
	return nil
}

// publish gives a finished file its right name, durably. Its name was free a moment ago, and nobody else is expected here.
func publish(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fileError(os.ErrExist)
	}
	if err := os.Rename(path+partialSuffix, path); err != nil {
		return fileError(err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fileError(err)
	}
	err = d.Sync()
	if errors.Is(err, errors.ErrUnsupported) || os.PathSeparator == '\\' {
		err = nil // folders cannot be synced here
	}
	return errors.Join(err, d.Close())
}
