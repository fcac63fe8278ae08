package standard

import (
	"cmp"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
)

// Names of objects. docs/formats/standard.md has the table.
const (
	poolName   = "pool.record"
	poolCopy   = "pool-copy.record"
	vmsFolder  = "vms"
	recordName = "set.record"
	markerName = "writing"
	maxSlug    = 40
	maxNumber  = 1 << 31 // sanity bound of numbers of data files
)

// folderName makes the folder of a set that one session writes. tag makes it the session's own: no name is ever given to
// other bytes, though a set's id may come back.
func folderName(m *holdfast.Manifest, tag uint64) string {
	at := m.Created.UTC()
	stamp := "undated"
	if y := at.Year(); y > 0 && y <= 9999 {
		stamp = at.Format("20060102-150405")
	}
	return fmt.Sprintf("%s/%s-%.8s/%s-%s.%016x", vmsFolder, slug(m.VM.Name), m.VM.ID, stamp, m.ID, tag)
}

// slug is what a VM's name becomes in a folder's name: letters, digits and single dashes.
func slug(name string) string {
	var b strings.Builder
	dash := false
	for _, r := range strings.ToLower(name) {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			dash = b.Len() > 0
			continue
		}
		if dash {
			b.WriteByte('-')
		}
		dash = false
		b.WriteRune(r)
		if b.Len() >= maxSlug {
			break
		}
	}
	if b.Len() == 0 {
		return "vm"
	}
	return b.String()
}

// setOfFolder reads the set id out of a folder's name.
func setOfFolder(folder string) (holdfast.SetID, bool) {
	base := path.Base(folder)
	dot := len(base) - 17 // ".", 16 digits
	if dot < 37 || base[dot] != '.' || base[dot-37] != '-' || path.Dir(path.Dir(folder)) != vmsFolder {
		return holdfast.SetID{}, false
	}
	id, err := holdfast.ParseID(base[dot-36 : dot])
	if err != nil || id.String() != base[dot-36:dot] {
		return holdfast.SetID{}, false
	}
	if _, err := strconv.ParseUint(base[dot+1:], 16, 64); err != nil {
		return holdfast.SetID{}, false
	}
	return holdfast.SetID{ID: id}, true
}

// A fileKey says which data file is meant, whatever its generation.
type fileKey struct {
	path   uint16 // number of the pool's path it lies on
	disk   uint16 // number of the disk in its set, from 0
	number uint32 // of the file among the disk's, from 1
	folder string
}

func (k fileKey) compare(o fileKey) int {
	return cmp.Or(cmp.Compare(k.path, o.path), strings.Compare(k.folder, o.folder), cmp.Compare(k.disk, o.disk), cmp.Compare(k.number, o.number))
}

// dataName returns the name of a data file. Generation 0 is how it was written; higher ones are rewritten by Collect.
func (k fileKey) dataName(gen int) string {
	if gen > 0 {
		return fmt.Sprintf("%s/disk-%d.%06d.c%d.data", k.folder, k.disk, k.number, gen)
	}
	return fmt.Sprintf("%s/disk-%d.%06d.data", k.folder, k.disk, k.number)
}

func mapName(folder string, disk int) string { return fmt.Sprintf("%s/disk-%d.map", folder, disk) }

// parseData is the inverse of dataName; the path is the caller's to set.
func parseData(name string) (k fileKey, gen int, ok bool) {
	rest, ok := strings.CutPrefix(path.Base(name), "disk-")
	if !ok {
		return k, 0, false
	}
	parts := strings.Split(rest, ".")
	if len(parts) != 3 && len(parts) != 4 {
		return k, 0, false
	}
	disk, err1 := strconv.ParseUint(parts[0], 10, 16)
	number, err2 := strconv.ParseUint(parts[1], 10, 32)
	if err1 != nil || err2 != nil {
		return k, 0, false
	}
	k = fileKey{disk: uint16(disk), number: uint32(number), folder: path.Dir(name)}
	if len(parts) == 4 {
		g, err := strconv.ParseUint(strings.TrimPrefix(parts[2], "c"), 10, 31)
		if err != nil {
			return k, 0, false
		}
		gen = int(g)
	}
	return k, gen, k.dataName(gen) == name
}
