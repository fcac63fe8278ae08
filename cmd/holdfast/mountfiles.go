package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/ingest/wire"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/mount"
)

// showFiles shows the disks as files until the mount's life is over, or somebody unmounts the folder.
func (a *app) showFiles(ctx context.Context, m *api.Mount, x mounting, src *mountSource, chosen []api.MountDisk, disks []*mount.Disk) (err error) {
	files, err := a.mountFiles(ctx, m, src, chosen, disks)
	if err != nil {
		return err
	}
	watch, err := watchMount(m.Place)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, watch()) }()
	dir, err := mount.Show(m.Place, files, mount.FolderOptions{ID: m.ID, Time: m.Time, AllowOther: x.allowOthers,
		OnError: func(text string) { fmt.Fprintf(a.errw, "error: %s\n", cli.Clean(text)) }})
	if err != nil {
		return err
	}
	if err := a.sayMounted(m, []string{m.Place}, chosen); err != nil {
		return errors.Join(err, dir.Close())
	}
	select {
	case <-ctx.Done():
	case <-dir.Done():
	}
	return dir.Close()
}

// mountFiles lists what is shown: each disk, the configuration files, and what the appliance knows of the set.
func (a *app) mountFiles(ctx context.Context, m *api.Mount, src *mountSource, chosen []api.MountDisk, disks []*mount.Disk) ([]mount.File, error) {
	var files []mount.File
	var names []string
	for i, d := range chosen {
		name := d.Name
		if name == "" {
			name = "disk" + strconv.Itoa(d.No)
		}
		names = append(names, name+".raw")
		files = append(files, mount.File{Size: d.Size, Content: disks[i], Allocated: disks[i].Allocated})
	}
	var s api.Set
	if err := a.call(ctx, "GET", "/v1/sets/"+m.Set, nil, &s); err != nil {
		return nil, err
	}
	facts, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "mount", "%w", err)
	}
	names = append(names, "set.json")
	files = append(files, mount.File{Size: int64(len(facts)), Content: bytes.NewReader(facts)})
	for i, f := range m.Files {
		b, err := src.file(ctx, i)
		if err != nil {
			return nil, err
		}
		names = append(names, f.Name)
		files = append(files, mount.File{Size: int64(len(b)), Content: bytes.NewReader(b)})
	}
	for i, name := range mount.FileNames(names) {
		files[i].Name = name
	}
	return files, nil
}

// watchMount starts a process that gives the folder back when this one is killed: a folder of a dead process answers nothing but errors until
// somebody unmounts it. It is started before the mount, so that it has no part of it. The function returned ends it.
func watchMount(dir string) (stop func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "mount", "%w", err)
	}
	c := exec.Command(self, "mount", "watch", dir)
	c.Dir = string(filepath.Separator)
	detachProcess(c) // an interrupt at the terminal is for the one that mounts
	in, err := c.StdinPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "mount", "%w", err)
	}
	return func() error {
		_, werr := in.Write([]byte{'k'}) // all is well
		if err := errors.Join(werr, in.Close(), c.Wait()); err != nil {
			return holdfast.Errorf(holdfast.Internal, "end mount", "%w", err)
		}
		return nil
	}, nil
}

// mountWatch is the process that watchMount starts.
func (a *app) mountWatch() *cobra.Command {
	return &cobra.Command{Use: "watch DIR", Short: "Give a folder back when the process that mounted it is killed", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if b, err := io.ReadAll(io.LimitReader(a.in, 1)); err != nil || len(b) > 0 {
				return err
			}
			return mount.Release(args[0])
		}}
}

// A mountSource reads a mount through the daemon.
type mountSource struct {
	a    *app
	base string
	c    *http.Client
}

func newMountSource(a *app, id string) *mountSource {
	return &mountSource{a: a, base: "/v1/mounts/" + id, c: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 16, // random reads are many, and short
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(a.data, socketName))
		},
	}}}
}

func (s *mountSource) close() { s.c.CloseIdleConnections() }

// Fetch implements mount.Source.
func (s *mountSource) Fetch(ctx context.Context, disk int, e holdfast.Extent, put func(holdfast.Domain, *holdfast.Parcel) error) error {
	resp, err := s.a.send(ctx, s.c, "GET", fmt.Sprintf("%s/disks/%d/parcels?off=%d&len=%d", s.base, disk, e.Off, e.Len), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() // read to its end, or given up
	in := wire.NewStreamReader(resp.Body)
	opened, _, err := readOpened(in)
	if err != nil {
		return err
	}
	dom := holdfast.Domain{Key: [32]byte(opened.DomainKey)}
	for delivered := false; ; {
		m, err := in.Next()
		switch {
		case errors.Is(err, io.EOF) && delivered:
			_, err = io.Copy(io.Discard, resp.Body) // to its very end, so that the connection serves again
			return err
		case errors.Is(err, io.EOF):
			return holdfast.Errorf(holdfast.Corrupt, "read stream", "it ended before everything was delivered")
		case err != nil:
			return err
		}
		switch m.Type {
		case wire.TypeParcel:
			if err := put(dom, m.Body.(*holdfast.Parcel)); err != nil {
				return err
			}
		case wire.TypeDelivered:
			delivered = true
			m.Release()
		default:
			m.Release()
			return holdfast.Errorf(holdfast.Internal, "read stream", "a message of type %v was not expected", m.Type)
		}
	}
}

// Map implements mount.Source.
func (s *mountSource) Map(ctx context.Context, disk int) (mount.Map, error) {
	var m api.MountMap
	if err := s.a.call(ctx, "GET", fmt.Sprintf("%s/disks/%d/map", s.base, disk), nil, &m); err != nil {
		return mount.Map{}, err
	}
	return mount.Map{Extents: m.Extents, Exact: m.Exact}, nil
}

// file reads a configuration file.
func (s *mountSource) file(ctx context.Context, no int) ([]byte, error) {
	resp, err := s.a.send(ctx, s.c, "GET", s.base+"/files/"+strconv.Itoa(no), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() // read to its end
	b, err := io.ReadAll(io.LimitReader(resp.Body, holdfast.MaxAttachmentBytes+1))
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Offline, "ask daemon", "the answer broke off: %w", err)
	}
	return b, nil
}
