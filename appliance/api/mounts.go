package api

import (
	"context"
	"io"
	"time"

	"github.com/holdfast-backup/holdfast"
)

type (
	// MountSpec says what is to be mounted, and what to tell others about it. The bytes are served by whoever asks, not by the appliance.
	MountSpec struct {
		Set      string `json:"set" doc:"a set's id"`
		How      string `json:"how" enum:"nbd,files" doc:"over NBD, or as files of a folder"`
		Place    string `json:"place" maxLength:"4096" doc:"address or folder where it can be used"`
		Writable bool   `json:"writable,omitempty" doc:"with an overlay that is thrown away"`
	}

	// Mount is a set in use. It is held, so that nothing of it is deleted or collected, until the mount ends or is not renewed.
	Mount struct {
		ID       string      `json:"id"`
		Set      string      `json:"set"`
		VM       string      `json:"vm"`
		VMID     string      `json:"vm_id"`
		Time     time.Time   `json:"time" doc:"the point in time"`
		Pool     string      `json:"pool"`
		How      string      `json:"how"`
		Place    string      `json:"place"`
		Writable bool        `json:"writable"`
		Since    time.Time   `json:"since"`
		Expires  time.Time   `json:"expires" doc:"unless it is renewed"`
		Ended    bool        `json:"ended,omitempty" doc:"somebody ended it"`
		Disks    []MountDisk `json:"disks"`
		Files    []MountFile `json:"files" doc:"configuration files of the VM"`
	}

	// MountDisk is a disk of a mount.
	MountDisk struct {
		No   int    `json:"no"`
		Name string `json:"name"`
		Size int64  `json:"size"`
	}

	// MountFile is a configuration file of a mount.
	MountFile struct {
		Name string `json:"name"`
		Size int64  `json:"size"`
	}

	// MountMap says where a disk may hold data: the rest reads as zeros.
	MountMap struct {
		Exact   bool              `json:"exact" doc:"false: neighbours were joined, to keep the list short"`
		Extents []holdfast.Extent `json:"extents"`
	}
)

// MountLease is how long a mount lives that is not renewed. Clients renew it all the time: a renewal that waits is how they hear of its end.
const MountLease = time.Minute

// MaxMountRead bounds one read of a mounted disk, in bytes.
const MaxMountRead = 64 << 20

// Mounter is the part of the service that lets sets be used without a restore.
type Mounter interface {
	// BeginMount opens a set and holds it.
	BeginMount(ctx context.Context, s MountSpec) (Mount, error)
	Mounts(ctx context.Context) ([]Mount, error)
	// RenewMount extends the lease, and waits for the mount's end, but not longer than wait. A caller that goes away while it waits has the
	// lease cut short. NotExist if there is no such mount, which is so after a restart of the appliance, too.
	RenewMount(ctx context.Context, id string, wait time.Duration) (Mount, error)
	EndMount(ctx context.Context, id string) (Mount, error)
	// MountMap reads where a disk holds data. It takes a walk through all of the disk's map, once.
	MountMap(ctx context.Context, id string, disk int) (MountMap, error)
	// MountFile returns a configuration file's bytes.
	MountFile(ctx context.Context, id string, no int) ([]byte, error)
	// ReadMount opens a range of a disk for streaming, in the form of ExportDisk.
	ReadMount(ctx context.Context, id string, disk int, e holdfast.Extent) (Export, error)
}

type (
	mountRenewIn struct {
		ID   string `path:"id"`
		Wait int    `query:"wait_ms" minimum:"0" maximum:"30000" doc:"milliseconds to wait for the mount's end"`
	}
	mountDiskIn struct {
		ID   string `path:"id"`
		Disk int    `path:"disk" minimum:"0" doc:"its place in the set's list of disks"`
	}
	mountReadIn struct {
		ID   string `path:"id"`
		Disk int    `path:"disk" minimum:"0" doc:"its place in the set's list of disks"`
		Off  int64  `query:"off" minimum:"0" doc:"first byte"`
		Len  int64  `query:"len" minimum:"1" maximum:"67108864" doc:"bytes"`
	}
	mountFileIn struct {
		ID string `path:"id"`
		No int    `path:"no" minimum:"0" doc:"its place in the mount's list of files"`
	}
)

func (a *API) registerMounts() {
	s := a.o.Service
	route(a, "POST", "/v1/mounts", "Hold a set for use without a restore", 201, func(ctx context.Context, in *bodyOfType[MountSpec]) (Mount, error) {
		return s.BeginMount(ctx, in.Body)
	})
	route(a, "GET", "/v1/mounts", "List mounts", 200, func(ctx context.Context, _ *none) ([]Mount, error) { return list(s.Mounts(ctx)) })
	route(a, "POST", "/v1/mounts/{id}/renew", "Keep a mount, and wait for its end if asked to", 200, func(ctx context.Context, in *mountRenewIn) (Mount, error) {
		return s.RenewMount(ctx, in.ID, time.Duration(in.Wait)*time.Millisecond)
	})
	route(a, "DELETE", "/v1/mounts/{id}", "End a mount", 200, func(ctx context.Context, in *byID) (Mount, error) { return s.EndMount(ctx, in.ID) })
	route(a, "GET", "/v1/mounts/{id}/disks/{disk}/map", "Say where a mounted disk holds data", 200, func(ctx context.Context, in *mountDiskIn) (MountMap, error) {
		return s.MountMap(ctx, in.ID, in.Disk)
	})
	octets(a, "/v1/mounts/{id}/files/{no}", "Read a configuration file of a mounted set", "its bytes", func(ctx context.Context, in *mountFileIn) (Export, error) {
		b, err := s.MountFile(ctx, in.ID, in.No)
		return func(_ context.Context, w io.Writer) error { _, err := w.Write(b); return err }, err
	})
	octets(a, "/v1/mounts/{id}/disks/{disk}/parcels", "Stream a range of a mounted disk as a parcel stream", "a parcel stream", func(ctx context.Context, in *mountReadIn) (Export, error) {
		return s.ReadMount(ctx, in.ID, in.Disk, holdfast.Extent{Off: in.Off, Len: in.Len})
	})
}
