package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/ingest/wire"
)

// A journal remembers which tasks may have left something on the host: one small file for each, there before the task changes anything and
// gone when nothing of it is left. A file that is there when the agent starts belongs to a task that a killed agent was at.
type journal struct{ dir string }

// An entry is what the journal knows of a task.
type entry struct {
	Task holdfast.TaskID `json:"task"`
	Kind string          `json:"kind"` // wire.TaskBackup or wire.TaskRestore
	VM   holdfast.VMID   `json:"vm,omitzero"`
	Dir  string          `json:"dir,omitempty"` // of a restore
}

const (
	journalSuffix   = ".task"
	maxEntryBytes   = 64 << 10
	maxJournalFiles = 4096 // read at start; more than an agent can have had at work
)

func openJournal(dir string) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, holdfast.Errorf(holdfast.Permission, "open journal", "%w", err)
	}
	return &journal{dir}, nil
}

// add makes the entry of a task durable.
func (j *journal) add(t *wire.Task) error {
	e := entry{Task: t.ID, Kind: t.Kind, VM: t.VM}
	if t.Restore != nil {
		e.Dir = t.Restore.Dir
	}
	b, err := json.Marshal(e)
	if err == nil {
		err = j.write(j.name(t.ID), b)
	}
	if err != nil {
		return holdfast.Errorf(holdfast.KindOf(err), "write journal", "%w", err)
	}
	return nil
}

// remove forgets a task of which nothing is left. Losing the removal in a crash only means to look for nothing.
func (j *journal) remove(id holdfast.TaskID) error {
	if err := os.Remove(j.name(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return holdfast.Errorf(holdfast.KindOf(err), "write journal", "%w", err)
	}
	return nil
}

// entries lists what is there. Files that are not whole are from an agent killed while writing them, before the task began:
// they are removed.
func (j *journal) entries() ([]entry, error) {
	const op = "read journal"
	names, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
	}
	var out []entry
	for _, n := range names[:min(len(names), maxJournalFiles)] {
		name := filepath.Join(j.dir, n.Name())
		var e entry
		whole := false
		if strings.HasSuffix(name, journalSuffix) {
			if st, err := n.Info(); err == nil && st.Size() <= maxEntryBytes {
				b, err := os.ReadFile(name)
				whole = err == nil && json.Unmarshal(b, &e) == nil && j.name(e.Task) == name
			}
		}
		if whole {
			out = append(out, e)
		} else if err := os.Remove(name); err != nil {
			return nil, holdfast.Errorf(holdfast.KindOf(err), op, "%w", err)
		}
	}
	return out, nil
}

func (j *journal) name(id holdfast.TaskID) string {
	return filepath.Join(j.dir, id.String()+journalSuffix)
}

// write replaces a file: temporary name, sync, rename, sync of the folder.
func (j *journal) write(name string, b []byte) error {
	f, err := os.CreateTemp(j.dir, "new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if runtime.GOOS == "windows" {
		return nil // folders cannot be synced there; NTFS journals the rename
	}
	d, err := os.Open(j.dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	return err
}
