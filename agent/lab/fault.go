package lab

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-backup/holdfast"
)

// Faults of a lab VM. Each happens once unless its value is a larger count or "always"; "off" takes it away. FaultSlowMerge
// takes a duration.
const (
	FaultTrackingLost = "tracking-lost"           // Changes says that the record is gone
	FaultIDUnknown    = "id-unknown"              // Changes does not know the token
	FaultWideRanges   = "wide-ranges"             // Changes answers whole MiBs, some false, out of order, overlapping
	FaultResized      = "disk-resized"            // Changes says that the disk was resized
	FaultSwapped      = "disk-swapped"            // Changes does not know the token: the disk is another one
	FaultReverted     = "checkpoint-reverted"     // Changes says that a checkpoint was applied
	FaultSlowMerge    = "slow-merge"              // after the next merge frozen disks cannot be opened for that time
	FaultCheckpoint   = "checkpoint-failure"      // Checkpoint fails
	FaultApp          = "app-consistency-failure" // the guest's applications cannot be quiesced

	faultAlways = "always"
	faultOff    = "off"
)

// Faults returns the names of all faults.
func Faults() []string {
	return []string{FaultTrackingLost, FaultIDUnknown, FaultWideRanges, FaultResized, FaultSwapped, FaultReverted, FaultSlowMerge,
		FaultCheckpoint, FaultApp}
}

const (
	maxFaultCount = 1000
	maxSlowMerge  = time.Hour
)

// SetFault sets a fault of a VM (found by folder, name or id). value is "" for once, a count, "always" or "off"; for
// FaultSlowMerge a duration or "off".
func (h *Host) SetFault(ctx context.Context, vm, fault, value string) error {
	const op = "set fault"
	if !slices.Contains(Faults(), fault) {
		return holdfast.Errorf(holdfast.Invalid, op, "there is no fault %q", fault).Advise("the faults are %s", strings.Join(Faults(), ", "))
	}
	n, nerr := strconv.Atoi(value)
	d, derr := time.ParseDuration(value)
	switch {
	case value == faultOff:
	case fault == FaultSlowMerge:
		if derr != nil || d <= 0 || d > maxSlowMerge {
			return holdfast.Errorf(holdfast.Invalid, op, "%s needs a duration up to %s, not %q", fault, maxSlowMerge, value).Advise("for example slow-merge=3s")
		}
	case value == "":
		value = "1"
	case value == faultAlways:
	case nerr != nil || n <= 0 || n > maxFaultCount:
		return holdfast.Errorf(holdfast.Invalid, op, "%q is no value of a fault", value).Advise("give a count up to %d, %q or %q", maxFaultCount, faultAlways, faultOff)
	}
	dir, _, err := h.find(vm)
	if err != nil {
		return err
	}
	return h.edit(ctx, dir, func(f *vmFile) error {
		f.setFault(fault, value)
		return nil
	})
}

// setFault changes a copy: vmFiles share their maps.
func (f *vmFile) setFault(fault, value string) {
	m := maps.Clone(f.Faults)
	if m == nil {
		m = make(map[string]string)
	}
	m[fault] = value
	if value == faultOff {
		delete(m, fault)
	}
	f.Faults = m
}

// takeFault reports whether a fault is due and counts it down, saving vm.json in dir unless that is "".
func (f *vmFile) takeFault(dir, fault string) (bool, error) {
	v := f.Faults[fault]
	switch v {
	case "":
		return false, nil
	case faultAlways:
		return true, nil
	}
	next := faultOff
	if n, err := strconv.Atoi(v); err == nil && n > 1 {
		next = strconv.Itoa(n - 1)
	}
	f.setFault(fault, next)
	if dir == "" {
		return true, nil
	}
	return true, f.save(dir)
}

// takeSlowMerge returns how long the merge that begins is slow. The caller saves.
func (f *vmFile) takeSlowMerge() (time.Duration, error) {
	v := f.Faults[FaultSlowMerge]
	if v == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d > maxSlowMerge {
		return 0, holdfast.Errorf(holdfast.Corrupt, "read vm.json", "fault %s=%q", FaultSlowMerge, v)
	}
	f.setFault(FaultSlowMerge, faultOff)
	return d, nil
}

// fault reports whether a fault meets this checkpoint. It is counted down at its first meeting; all disks meet it.
func (c *checkpoint) fault(ctx context.Context, name string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if hit, known := c.faults[name]; known {
		return hit, nil
	}
	f, err := loadVM(c.dir)
	if err != nil {
		return false, err
	}
	hit := false
	if f.Faults[name] != "" {
		err = c.host.edit(ctx, c.dir, func(f *vmFile) (err error) { hit, err = f.takeFault("", name); return err })
		if err != nil {
			return false, err
		}
	}
	c.faults[name] = hit
	return hit, nil
}
