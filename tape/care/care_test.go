package care_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/care"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
	"github.com/holdfast-backup/holdfast/tape/library"
	"github.com/holdfast-backup/holdfast/tape/ltfs"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var ctx = context.Background()

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, what string, err error, k holdfast.Kind) {
	t.Helper()
	if err == nil || holdfast.KindOf(err) != k {
		t.Errorf("%s: %v, want %v", what, err, k)
	}
}

func desk(t *testing.T, e *emu.Library, drives int) *care.Desk {
	t.Helper()
	var u library.Units
	for i := -1; i < drives; i++ {
		x, err := library.Look(ctx, e.Connect("a", emu.Unit(i)), "emulated")
		must(t, err)
		u.List = append(u.List, x)
	}
	l, err := library.New(ctx, u, library.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, l.Close(ctx)) })
	return &care.Desk{Library: l, Phase: func(s string) { t.Log(s) }}
}

func expect(m care.Medium) *care.Expect { return &care.Expect{ID: m.ID, Serial: m.Serial} }

// TestACartridgeIsOverwrittenOnlyByWhoKnowsIt: labels and erasures go by what was read from the cartridge, whatever its bar code says.
func TestACartridgeIsOverwrittenOnlyByWhoKnowsIt(t *testing.T) {
	e := emu.New(emu.Options{Drives: 2, Slots: 4, Exports: 1})
	a, b := e.Add(0, emu.Media{Barcode: "HF0001L8"}), e.Add(1, emu.Media{Barcode: "HF0002L8"})
	d := desk(t, e, 2)
	first := care.Choice{Cartridge: "HF0001L8"}
	m, err := d.Show(ctx, first)
	if must(t, err); m.Content != care.Blank || m.Serial == "" || m.Capacity == 0 {
		t.Errorf("%+v", m)
	}
	for _, format := range []string{care.Own, care.LTFS} {
		made, err := d.Label(ctx, care.LabelSpec{Choice: first, Format: format, Expect: expect(m)})
		must(t, err)
		if made.Content != format || made.ID == "" || len(made.Problems) > 0 || made.Loss() == "" {
			t.Errorf("%+v", made)
		}
		_, err = d.Label(ctx, care.LabelSpec{Choice: first, Format: format})
		wantKind(t, "a label over a label", err, holdfast.Exist)
		if !strings.Contains(err.Error(), made.ID) {
			t.Errorf("the refusal does not say what would be lost: %v", err)
		}
		m = made
	}
	_, err = d.Label(ctx, care.LabelSpec{Choice: care.Choice{Cartridge: "HF0002L8"}, Format: care.Own})
	must(t, err)
	other, err := d.Show(ctx, care.Choice{Cartridge: "HF0002L8"})
	must(t, err)

	e.SetBarcode(a, "HF0009L8") // somebody swaps the stickers
	e.SetBarcode(b, "HF0001L8")
	_, err = d.Erase(ctx, first, *expect(m))
	wantKind(t, "another cartridge under the same bar code", err, holdfast.Invalid)
	now, err := d.Show(ctx, first)
	if must(t, err); now.ID != other.ID || len(now.Problems) != 1 || !strings.Contains(now.Problems[0], "HF0002L8") {
		t.Errorf("%+v", now)
	}
	_, err = d.Erase(ctx, first, care.Expect{ID: now.ID, Serial: "another"})
	wantKind(t, "another serial number", err, holdfast.Invalid)
	gone, err := d.Erase(ctx, first, *expect(now))
	if must(t, err); gone.Content != care.Blank {
		t.Errorf("%+v", gone)
	}
	_, err = d.Show(ctx, care.Choice{Cartridge: "HF7777L8"})
	wantKind(t, "no such cartridge", err, holdfast.NotExist)
	e.SetBarcode(a, "HF0001L8")
	_, err = d.Show(ctx, first)
	wantKind(t, "a bar code that two have", err, holdfast.Invalid)
	byPlace, err := d.Show(ctx, care.Choice{Cartridge: "1025"})
	if must(t, err); byPlace.Content != care.Blank {
		t.Errorf("%+v", byPlace)
	}
	s, err := d.Stock(ctx, true)
	if must(t, err); !slices.Equal(s.Twice, []string{"HF0001L8"}) || len(s.Drives) != 2 || s.Drives[0].Full || s.Drives[0].Busy || !s.Places[0].Full || !s.Places[1].Full {
		t.Errorf("cartridges are not back in their places: %+v", s)
	}
}

// TestWhatIsOfOthersIsCalledForeign and WORM is not erased.
func TestWhatIsOfOthersIsCalledForeign(t *testing.T) {
	e := emu.New(emu.Options{Drives: 1, Slots: 4})
	e.Add(0, emu.Media{Barcode: "OTHER1L8"})
	e.Add(1, emu.Media{Barcode: "WORM01L8", WORM: true})
	d := desk(t, e, 1)
	must(t, d.Library.Changer().Load(ctx, "OTHER1L8", emu.AddrDrive))
	h, err := d.Library.Take(ctx, emu.AddrDrive)
	must(t, err)
	must(t, h.Drive.Ready(ctx))
	must(t, h.Drive.Write(ctx, bytes.Repeat([]byte("other software"), 1000)))
	must(t, h.Drive.Flush(ctx, 1))
	_, err = d.Show(ctx, care.Choice{Cartridge: "OTHER1L8"})
	wantKind(t, "a drive in use", err, holdfast.Busy)
	_, err = d.Show(ctx, care.Choice{Cartridge: "WORM01L8"})
	wantKind(t, "no free drive", err, holdfast.Busy)
	must(t, h.Release(ctx))
	m, err := d.Show(ctx, care.Choice{Cartridge: "OTHER1L8"}) // it is in the drive: it is read there, and goes home
	if must(t, err); m.Content != care.Foreign || m.ID != "" {
		t.Errorf("%+v", m)
	}
	_, err = d.Label(ctx, care.LabelSpec{Choice: care.Choice{Cartridge: "OTHER1L8"}, Format: care.Own})
	wantKind(t, "labelling what is of others", err, holdfast.Exist)
	w := care.Choice{Cartridge: "WORM01L8"}
	m, err = d.Label(ctx, care.LabelSpec{Choice: w, Format: care.Own})
	if must(t, err); !m.WORM {
		t.Errorf("%+v", m)
	}
	_, err = d.Erase(ctx, w, *expect(m))
	wantKind(t, "erasing a write-once medium", err, holdfast.Immutable)
	if again, err := d.Show(ctx, w); err != nil || again.ID != m.ID {
		t.Errorf("%+v, %v", again, err)
	}
}

// TestDrivesAreTestedAndCleaned: a scratch cartridge is written and read and left blank; one with content is not taken; a cleaning cartridge
// does away with the request and is put back.
func TestDrivesAreTestedAndCleaned(t *testing.T) {
	e := emu.New(emu.Options{Drives: 1, Slots: 4})
	e.Add(0, emu.Media{Barcode: "HF0001L8"})
	e.Add(2, emu.Media{Barcode: "CLN001L1", Cleaning: 1})
	d := desk(t, e, 1)
	in := d.Library.Bays()[0].Serial
	r, err := d.Test(ctx, care.Choice{Drive: in}, nil)
	if must(t, err); r.Written != 0 || len(r.Alerts) != 0 {
		t.Errorf("%+v", r)
	}
	c := care.Choice{Drive: in, Cartridge: "HF0001L8"}
	r, err = d.Test(ctx, c, nil)
	if must(t, err); r.Written != 64<<20 || r.Differs != 0 || !r.Capabilities.Memory {
		t.Errorf("%+v", r)
	}
	m, err := d.Label(ctx, care.LabelSpec{Choice: c, Format: care.Own}) // it was left blank
	must(t, err)
	_, err = d.Test(ctx, c, nil)
	wantKind(t, "testing on a labelled cartridge", err, holdfast.Exist)
	e.Inject(emu.Fault{Unit: emu.Drive(0), Op: scsi.OpRead6, Skip: 40, Do: emu.Rot})
	r, err = d.Test(ctx, c, expect(m))
	if must(t, err); r.Differs != 1 {
		t.Errorf("a block that rots: %+v", r)
	}
	e.RequestCleaning(0)
	r, err = d.Test(ctx, care.Choice{Drive: in}, nil)
	if must(t, err); len(r.Alerts) != 1 {
		t.Errorf("a request for cleaning: %+v", r)
	}
	if m, err := d.Show(ctx, care.Choice{Cartridge: "CLN001L1"}); err != nil || m.Content != care.Cleaning { // which does not use it
		t.Errorf("%+v, %v", m, err)
	}
	_, err = d.Label(ctx, care.LabelSpec{Choice: care.Choice{Cartridge: "CLN001L1"}, Format: care.Own})
	wantKind(t, "labelling a cleaning cartridge", err, holdfast.Invalid)
	k, err := d.Clean(ctx, care.Choice{Drive: in})
	if must(t, err); k.Cartridge != "CLN001L1" || len(k.Alerts) != 0 {
		t.Errorf("%+v", k)
	}
	if !slices.Contains(e.Trace(), "drive 0 cleaned") {
		t.Errorf("%q", e.Trace())
	}
	_, err = d.Clean(ctx, care.Choice{Drive: in})
	wantKind(t, "a cartridge that is used up", err, holdfast.Invalid)
	_, err = d.Clean(ctx, care.Choice{Drive: in, Cartridge: "HF0001L8"})
	wantKind(t, "cleaning with a data cartridge", err, holdfast.Invalid)
}

// TestCartridgesComeAndGoThroughTheDoor.
func TestCartridgesComeAndGoThroughTheDoor(t *testing.T) {
	e := emu.New(emu.Options{Drives: 1, Slots: 2, Exports: 1})
	e.Add(2, emu.Media{Barcode: "HF0001L8"})
	d := desk(t, e, 1)
	m, err := d.Import(ctx)
	if must(t, err); !slices.Equal(m.Cartridges, []string{"HF0001L8"}) {
		t.Errorf("%+v", m)
	}
	must(t, d.Library.Changer().Load(ctx, "HF0001L8", emu.AddrDrive))
	m, err = d.Export(ctx, "HF0001L8") // from the drive, where nobody uses it
	if must(t, err); m.Element != emu.AddrExport {
		t.Errorf("%+v", m)
	}
	if c := e.Remove(2); c == nil {
		t.Error("it is not in the door")
	}
	m, err = d.Import(ctx)
	if must(t, err); len(m.Cartridges) != 0 {
		t.Errorf("%+v", m)
	}
}

// TestVolumesGoToFoldersAndBack: an LTFS volume from a cartridge into the layout that the reference checker reads, and from there to another
// cartridge, is the same volume with the same files and passes the check, in every place.
func TestVolumesGoToFoldersAndBack(t *testing.T) {
	e := emu.New(emu.Options{Drives: 1, Slots: 4})
	for i, b := range []string{"HF0001L5", "HF0002L5"} {
		e.Add(i, emu.Media{Barcode: b, Capacity: 3 << 30})
	}
	d := desk(t, e, 1)
	one, two := care.Choice{Cartridge: "HF0001L5"}, care.Choice{Cartridge: "HF0002L5"}
	m, err := d.Label(ctx, care.LabelSpec{Choice: one, Format: care.LTFS, Name: "archive"})
	must(t, err)
	must(t, d.Library.Changer().Load(ctx, "HF0001L5", emu.AddrDrive))
	h, err := d.Library.Take(ctx, emu.AddrDrive)
	must(t, err)
	must(t, h.Drive.Ready(ctx))
	at := time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)
	w, err := ltfs.NewWriter(ctx, h.Drive, "Holdfast test", at)
	must(t, err)
	rng := rand.New(rand.NewPCG(1, 2))
	files := map[string][]byte{}
	for _, n := range []int{0, 1, 700000, 3 << 20} {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		name := "/holdfast/f-" + string(rune('a'+len(files)))
		files[name] = p
		must(t, w.Add(ctx, name, bytes.NewReader(p), at))
		must(t, w.Sync(ctx, at))
	}
	must(t, h.Release(ctx))
	dir := filepath.Join(t.TempDir(), "out")
	c, err := d.ExportDir(ctx, one, dir)
	if must(t, err); c.UUID != m.ID || c.Bytes < 3<<20 {
		t.Errorf("%+v", c)
	}
	volume(t, "the folder", ltfs.OpenFolder(os.DirFS(dir)), m.ID, files)
	_, err = d.ExportDir(ctx, one, dir)
	wantKind(t, "a folder that is not empty", err, holdfast.Exist)
	c2, err := d.ImportDir(ctx, two, dir, nil)
	if must(t, err); c2 != c {
		t.Errorf("%+v, not %+v", c2, c)
	}
	_, err = d.ImportDir(ctx, two, dir, nil)
	wantKind(t, "over a volume", err, holdfast.Exist)
	_, err = d.ImportDir(ctx, two, t.TempDir(), nil)
	if err == nil {
		t.Error("an empty folder was imported")
	}
	must(t, d.Library.Changer().Load(ctx, "HF0002L5", emu.AddrDrive))
	h, err = d.Library.Take(ctx, emu.AddrDrive)
	must(t, err)
	must(t, h.Drive.Ready(ctx))
	volume(t, "the other cartridge", h.Drive, m.ID, files)
	must(t, h.Release(ctx))
}

func volume(t *testing.T, where string, tape ltfs.Tape, id string, files map[string][]byte) {
	t.Helper()
	v, err := ltfs.Open(ctx, tape)
	must(t, err)
	if v.Label.UUID != id || len(v.Problems) > 0 {
		t.Errorf("%s: %s, %q", where, v.Label.UUID, v.Problems)
	}
	if bad, err := v.Check(ctx); err != nil || len(bad) > 0 {
		t.Errorf("%s: %q, %v", where, bad, err)
	}
	n := 0
	must(t, v.Index.Walk(func(path string, f *ltfs.File) error {
		if f == nil {
			return nil
		}
		n++
		var b bytes.Buffer
		must(t, v.Read(ctx, f, &b))
		if want, ok := files[path]; !ok || !bytes.Equal(want, b.Bytes()) {
			t.Errorf("%s: %s has %d bytes, want %d", where, path, b.Len(), len(want))
		}
		return nil
	}))
	if n != len(files) {
		t.Errorf("%s: %d files", where, n)
	}
}

// TestAllOfItOnALibraryOfOtherPeople, which can do less: no memory, no formatting, no erasing command.
func TestAllOfItOnALibraryOfOtherPeople(t *testing.T) {
	tgt := tgttest.Start(t, tgttest.Options{Drives: 2, Slots: 4, Media: []string{"HF0001L8", "HF0002L8"}, MiB: 256})
	l, err := library.Open(ctx, "iscsi://"+tgt.Portal+"/"+tgttest.Target, library.Options{})
	must(t, err)
	t.Cleanup(func() { must(t, l.Close(ctx)) })
	d := &care.Desk{Library: l}
	c := care.Choice{Cartridge: "HF0001L8"}
	m, err := d.Label(ctx, care.LabelSpec{Choice: c, Format: care.Own})
	if must(t, err); m.Content != care.Own || m.Label != "HF0001L8" {
		t.Errorf("%+v", m)
	}
	_, err = d.Label(ctx, care.LabelSpec{Choice: c, Format: care.Own})
	wantKind(t, "a label over a label", err, holdfast.Exist)
	_, err = d.Label(ctx, care.LabelSpec{Choice: care.Choice{Cartridge: "HF0002L8"}, Format: care.LTFS})
	wantKind(t, "LTFS where there are no partitions", err, holdfast.Unsupported)
	m, err = d.Erase(ctx, c, *expect(m))
	if must(t, err); m.Content != care.Blank {
		t.Errorf("%+v", m)
	}
	r, err := d.Test(ctx, care.Choice{Cartridge: "HF0001L8", Drive: "2"}, nil)
	if must(t, err); r.Written != 64<<20 || r.Differs != 0 {
		t.Errorf("%+v", r)
	}
	out, err := d.Export(ctx, "HF0001L8")
	if must(t, err); out.Element != tgttest.AddrExport {
		t.Errorf("%+v", out)
	}
	in, err := d.Import(ctx)
	if must(t, err); !slices.Equal(in.Cartridges, []string{"HF0001L8"}) {
		t.Errorf("%+v", in)
	}
	s, err := d.Stock(ctx, false)
	if must(t, err); len(s.Drives) != 2 || len(s.Places) != 5 || !s.Robot {
		t.Errorf("%+v", s)
	}
}
