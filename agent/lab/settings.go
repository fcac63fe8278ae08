package lab

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/hv"
)

const (
	settingsName     = "host.json"
	maxSettingsBytes = 1 << 20
	maxSwitches      = 1000
	// DefaultSwitch is the one virtual switch of a lab host that was not told otherwise.
	DefaultSwitch = "Default Switch"
	probeName     = ".holdfast-probe-*"
)

// Settings are what a lab host pretends to be. They are in host.json; without it, the defaults hold.
type Settings struct {
	Switches  []string `json:"switches"`   // virtual switches
	VMVersion string   `json:"vm_version"` // the highest configuration version of a VM that it runs
	Free      int64    `json:"free"`       // bytes that it says are free on every volume; 0: what the volume says
}

// Settings returns what the host pretends to be.
func (h *Host) Settings() (Settings, error) {
	s := Settings{Switches: []string{DefaultSwitch}, VMVersion: "lab-" + version}
	b, err := readBounded(filepath.Join(h.dir, settingsName), maxSettingsBytes)
	if holdfast.KindOf(err) == holdfast.NotExist {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, holdfast.Errorf(holdfast.Corrupt, "read "+settingsName, "%w", err)
	}
	return s, nil
}

// SetSettings changes what the host pretends to be.
func (h *Host) SetSettings(ctx context.Context, s Settings) error {
	const op = "set up lab host"
	if len(s.Switches) > maxSwitches || s.Free < 0 {
		return holdfast.Errorf(holdfast.Invalid, op, "%d switches, %d bytes free", len(s.Switches), s.Free)
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return holdfast.Errorf(holdfast.Internal, op, "%w", err)
	}
	reg, err := waitLock(ctx, h.clock, h.dir, registerGate, exclusive)
	if err != nil {
		return err
	}
	defer reg.unlock()
	return replaceFile(filepath.Join(h.dir, settingsName), append(b, '\n'))
}

// Start makes a VM (found by folder, name or id) run, Stop shuts it down. A VM one of whose disks is served runs whatever is said here.
func (h *Host) Start(ctx context.Context, vm string) error { return h.setState(ctx, vm, stateRunning) }

// Stop is the opposite of Start.
func (h *Host) Stop(ctx context.Context, vm string) error { return h.setState(ctx, vm, stateOff) }

func (h *Host) setState(ctx context.Context, vm, state string) error {
	dir, _, err := h.find(vm)
	if err != nil {
		return err
	}
	return h.edit(ctx, dir, func(f *vmFile) error { f.State = state; return nil })
}

// Survey looks at folders. Whether a file can be made is found out by making one without content, which is removed at once.
func (h *Host) Survey(ctx context.Context, dirs []string) ([]hv.Folder, error) {
	s, err := h.Settings()
	if err != nil {
		return nil, err
	}
	out := make([]hv.Folder, 0, len(dirs))
	for _, dir := range dirs {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		f := hv.Folder{Dir: dir, Free: -1}
		if filepath.IsAbs(dir) {
			look(&f)
		} else {
			f.Problem = "it is not an absolute path"
		}
		if s.Free > 0 && f.Problem == "" {
			f.Free, f.Volume = s.Free, "the lab's"
		}
		out = append(out, f)
	}
	return out, nil
}

// look describes a folder, or the nearest folder above it that is there.
func look(f *hv.Folder) {
	at := filepath.Clean(f.Dir)
	for {
		st, err := os.Stat(at)
		if err == nil && !st.IsDir() {
			f.Problem = at + " is a file"
			return
		}
		if err == nil {
			break
		}
		up := filepath.Dir(at)
		if !errors.Is(err, os.ErrNotExist) && !isNotDir(err) || up == at {
			f.Problem = err.Error()
			return
		}
		at = up
	}
	f.Exists = at == filepath.Clean(f.Dir)
	if f.Exists {
		entries, err := os.ReadDir(at)
		if err != nil {
			f.Problem = err.Error()
			return
		}
		for _, e := range entries[:min(len(entries), hv.MaxFolderFiles)] {
			f.Files = append(f.Files, e.Name())
		}
	}
	p, err := os.CreateTemp(at, probeName)
	if err == nil {
		err = errors.Join(p.Close(), os.Remove(p.Name()))
	}
	if err != nil {
		f.Problem = err.Error()
		return
	}
	f.Free, f.Volume = volume(at)
}

// isNotDir tells that a part of a path is a file: the folder above says so more clearly.
func isNotDir(err error) bool { return strings.Contains(err.Error(), "not a directory") }

// freeSlot returns a place on a SCSI controller where no disk is.
func (f *vmFile) freeSlot(op string) (no, slot int, err error) {
	for no = range scsiControllers {
		for slot = range slotsOfSCSI {
			if !slices.ContainsFunc(f.Disks, func(d diskEntry) bool {
				return d.Controller == "scsi" && d.ControllerNo == no && d.Slot == slot
			}) {
				return no, slot, nil
			}
		}
	}
	return 0, 0, holdfast.Errorf(holdfast.NoSpace, op, "all %d places for disks are taken", slotsOfSCSI*scsiControllers)
}
