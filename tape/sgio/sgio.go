// Package sgio carries SCSI commands to devices of this machine through Linux's SCSI generic driver (/dev/sg*): the SG_IO request, version 3
// of its structure, without cgo.
//
// It owns one open device file per Device and nothing on a disk. A command whose answer the kernel does not have (a timeout, after which it
// aborts the command or resets the device; a lost path; a reset) is an error, because nobody knows what became of it; none is ever repeated
// here. On other systems everything is Unsupported.
//
// It imports scsi and the ground floor only.
package sgio

import (
	"errors"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

const (
	op       = "talk to SCSI device"
	classDir = "class/scsi_generic" // below /sys
	maxList  = 4096
)

// A Found is a device file with what the kernel has asked the device at its start.
type Found struct {
	Path    string // /dev/sg3; may be another one after the next start
	Type    scsi.DeviceType
	Vendor  string
	Product string
}

// list reads the kernel's list of devices from a tree like /sys.
func list(sys fs.FS) ([]Found, error) {
	ds, err := fs.ReadDir(sys, classDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the driver is not loaded: it has no devices
	}
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, op, "list devices: %w", err)
	}
	var out []Found
	for _, d := range ds {
		if !strings.HasPrefix(d.Name(), "sg") || len(out) == maxList {
			continue
		}
		attr := func(name string) string {
			b, err := fs.ReadFile(sys, path.Join(classDir, d.Name(), "device", name))
			if err != nil {
				return "" // it has just been taken away
			}
			return strings.TrimSpace(string(b))
		}
		n, err := strconv.ParseUint(attr("type"), 10, 5)
		if err != nil {
			continue
		}
		out = append(out, Found{Path: "/dev/" + d.Name(), Type: scsi.DeviceType(n), Vendor: attr("vendor"), Product: attr("model")})
	}
	slices.SortFunc(out, func(a, b Found) int {
		if n := len(a.Path) - len(b.Path); n != 0 {
			return n
		}
		return strings.Compare(a.Path, b.Path)
	})
	return out, nil
}
