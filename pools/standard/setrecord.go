package standard

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/pools/container"
)

// Bounds of a set record.
const (
	maxFilesBytes = 64 << 20 // of its second part: about two million data files
	maxSetRecord  = holdfast.MaxManifestBytes + maxFilesBytes + 4*maxTitle
	maxFileBytes  = 1 << 40 // of a data file
)

// A setRecord is a committed set: its manifest, its maps, and every data file its maps name. Writing it is the commit.
type setRecord struct {
	title    string
	manifest holdfast.Manifest
	files    filesPart
}

// filesPart is the second part of a set record, as JSON.
type filesPart struct {
	Format int             `json:"format"`
	Pool   holdfast.PoolID `json:"pool"`
	Folder string          `json:"folder"` // of the set
	Maps   []mapFact       `json:"maps"`   // one for each disk of the manifest, in its order
	Data   []fileRange     `json:"data"`
}

// A mapFact says what a map is, so that another one in its place is noticed.
type mapFact struct {
	Bytes int64           `json:"bytes"`
	Sum   holdfast.Digest `json:"sum"` // the map's own
}

// A fileRange is data files of one disk of one set with numbers in a row, in one folder.
type fileRange struct {
	Path   uint16     `json:"path"`
	Folder string     `json:"folder"`
	Disk   uint16     `json:"disk"`
	First  uint32     `json:"first"` // number of the first file
	Files  []fileFact `json:"files"`
}

// A fileFact is [bytes of the file, bytes of plaintext in it, chunks in it], as it was written.
type fileFact [3]int64

// titleOf says what the set is, on a line for people.
func titleOf(m *holdfast.Manifest) string {
	name := []rune(m.VM.Name)
	name = name[:min(len(name), 80)]
	for len(strconv.QuoteToGraphic(string(name))) > maxTitle/2 {
		name = name[:len(name)-1]
	}
	disks := "1 disk"
	if n := len(m.Disks); n != 1 {
		disks = fmt.Sprint(n, " disks")
	}
	return fmt.Sprintf("holdfast standard set, version 1. VM %s, point in time %s, %s, %s. Format: docs/formats/standard.md",
		strconv.QuoteToGraphic(string(name)), m.Created.UTC().Format("2006-01-02 15:04:05 MST"), m.Kind, disks)
}

func (r *setRecord) encode() ([]byte, error) {
	m, err := holdfast.MarshalManifest(&r.manifest)
	if err != nil {
		return nil, err
	}
	j, err := json.Marshal(&r.files)
	if err != nil {
		return nil, holdfast.Errorf(holdfast.Internal, "encode set record", "%w", err)
	}
	if len(j) > maxFilesBytes {
		return nil, holdfast.Errorf(holdfast.Invalid, "encode set record", "the set names too many data files: %d bytes; at most %d are allowed", len(j), maxFilesBytes).
			Advise("back the VM up in full")
	}
	f := frame{title: r.title, parts: []part{{"manifest", m}, {"files", j}}}
	return f.encode(), nil
}

// parseSetRecord is the inverse of encode: what it accepts is encoded to the same bytes.
func parseSetRecord(b []byte) (*setRecord, error) {
	const op = "read set record"
	f, err := parseFrame(op, b, "manifest", "files")
	if err != nil {
		return nil, err
	}
	r := &setRecord{title: f.title}
	if r.manifest, err = holdfast.UnmarshalManifest(f.parts[0].body); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	body := f.parts[1].body
	if len(body) > maxFilesBytes {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%d bytes of data files", len(body))
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r.files); err != nil {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "%w", err)
	}
	if r.files.Format != formatVersion {
		return nil, holdfast.Errorf(holdfast.Unsupported, op, "format %d", r.files.Format).Advise("open the pool with a newer version of Holdfast")
	}
	if err := r.check(op); err != nil {
		return nil, err
	}
	if j, err := json.Marshal(&r.files); err != nil || !bytes.Equal(j, body) {
		return nil, holdfast.Errorf(holdfast.Corrupt, op, "not in canonical form")
	}
	return r, nil
}

// check refuses a record that no session wrote.
func (r *setRecord) check(op string) error {
	id, ok := setOfFolder(r.files.Folder)
	if !ok || id != r.manifest.ID || len(r.files.Maps) != len(r.manifest.Disks) {
		return holdfast.Errorf(holdfast.Corrupt, op, "%d maps of %d disks in folder %q", len(r.files.Maps), len(r.manifest.Disks), r.files.Folder)
	}
	for _, m := range r.files.Maps {
		if m.Bytes < 0 || m.Bytes > maxFileBytes {
			return holdfast.Errorf(holdfast.Corrupt, op, "a map of %d bytes", m.Bytes)
		}
	}
	for _, d := range r.files.Data {
		if _, ok := setOfFolder(d.Folder); !ok || strings.Count(d.Folder, "/") != 2 || d.Path < 1 || d.Path > maxPaths || d.First < 1 || len(d.Files) == 0 ||
			int64(d.First)+int64(len(d.Files)) > maxNumber {
			return holdfast.Errorf(holdfast.Corrupt, op, "%d data files from number %d in folder %q", len(d.Files), d.First, d.Folder)
		}
		for _, f := range d.Files {
			if f[0] < 0 || f[0] > maxFileBytes || f[1] < 0 || f[1] > maxFileBytes || f[2] < 0 || f[2] > container.MaxChunks {
				return holdfast.Errorf(holdfast.Corrupt, op, "a data file of %d bytes with %d bytes in %d chunks", f[0], f[1], f[2])
			}
		}
	}
	return nil
}

// each calls f with every data file that the record names.
func (p *filesPart) each(f func(k fileKey, fact fileFact)) {
	for i := range p.Data {
		d := &p.Data[i]
		for n, fact := range d.Files {
			f(fileKey{path: d.Path, disk: d.Disk, number: d.First + uint32(n), folder: d.Folder}, fact)
		}
	}
}

// add names one more data file; in ascending order of numbers they become ranges.
func (p *filesPart) add(k fileKey, fact fileFact) {
	if n := len(p.Data); n > 0 {
		d := &p.Data[n-1]
		if d.Path == k.path && d.Folder == k.folder && d.Disk == k.disk && d.First+uint32(len(d.Files)) == k.number {
			d.Files = append(d.Files, fact)
			return
		}
	}
	p.Data = append(p.Data, fileRange{Path: k.path, Folder: k.folder, Disk: k.disk, First: k.number, Files: []fileFact{fact}})
}
