package ltfs_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/ltfs"
	"github.com/holdfast-backup/holdfast/tape/scsi"
)

var ctx = context.Background()

// reference returns the volume that the reference implementation wrote, as a folder in memory.
func reference(t testing.TB) fstest.MapFS {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "reference-volume-HF0001L5.tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	out, r := fstest.MapFS{}, tar.NewReader(z)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out[path.Base(h.Name)] = &fstest.MapFile{Data: b}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

// listing reads everything of a volume: path, bytes and SHA-256, or where a link leads.
func listing(t testing.TB, v *ltfs.Volume) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := v.Index.Walk(func(path string, f *ltfs.File) error {
		if f == nil {
			return nil
		}
		if s := f.Symlink.String(); s != "" {
			out[path] = "-> " + s
			return nil
		}
		h := sha256.New()
		err := v.Read(ctx, f, h)
		out[path] = fmt.Sprintf("%d %s", f.Length, hex.EncodeToString(h.Sum(nil)))
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return out
}

var wanted = map[string]string{
	"/dirA/hello.txt": "6 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
	"/dirA/big.bin":   "3145728 8f1521b57609db3f7c226dbc5127cde4b8a236541fa9f9d7900dce57ac9de75c",
	"/dirA/link":      "-> hello.txt",
	"/empty":          "0 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
}

// TestReferenceVolumeReadsExactly: what the reference implementation wrote is found, byte for byte, and nothing is wrong with it.
func TestReferenceVolumeReadsExactly(t *testing.T) {
	v, err := ltfs.Open(ctx, ltfs.OpenFolder(reference(t)))
	if err != nil {
		t.Fatal(err)
	}
	if v.Serial != "HF0001" || v.Index.Root.Name.String() != "holdfast" || v.Index.Generation != 2 || v.Label.Block != 524288 {
		t.Errorf("serial %q, name %q, generation %d, blocks of %d", v.Serial, v.Index.Root.Name, v.Index.Generation, v.Label.Block)
	}
	if got := listing(t, v); !maps.Equal(got, wanted) {
		t.Errorf("found %v, want %v", got, wanted)
	}
	if bad, err := v.Check(ctx); len(bad) != 0 || err != nil {
		t.Errorf("check: %q, %v", bad, err)
	}
}

// loaded writes the objects and the memory of a folder to a tape with two partitions, through a drive.
func loaded(t *testing.T, f fstest.MapFS) *drive.Drive {
	t.Helper()
	lib := emu.New(emu.Options{Drives: 1, Slots: 1})
	lib.Add(0, emu.Media{Barcode: "HF0001L5", Capacity: 3 << 30})
	robot := lib.Connect("a", emu.Changer)
	for range 3 {
		_, _ = robot.Exec(ctx, scsi.Command{CDB: scsi.MoveMedium(0, emu.AddrSlot, emu.AddrDrive)}) // the first meets an attention
	}
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	d, err := drive.Open(ctx, lib.Connect("a", emu.Drive(0)), drive.Options{})
	must(err)
	must(d.Ready(ctx))
	must(d.Format(ctx, true, 1))
	for p := range uint8(2) {
		must(d.Locate(ctx, p, 0))
		for n := 0; ; n++ {
			if f[fmt.Sprintf("%d_%d_F", p, n)] != nil {
				must(d.Filemarks(ctx, 1))
			} else if r := f[fmt.Sprintf("%d_%d_R", p, n)]; r != nil {
				must(d.Write(ctx, r.Data))
			} else {
				break
			}
		}
		must(d.Flush(ctx, 0))
	}
	for name, file := range f {
		if part, id, ok := strings.Cut(strings.TrimPrefix(name, "attr_"), "_"); ok && strings.HasPrefix(name, "attr_") {
			n, err := strconv.ParseUint(id, 16, 16)
			must(err)
			if n >= 0x800 {
				must(d.SetAttributes(ctx, part[0]-'0', scsi.Attribute{ID: uint16(n), Format: file.Data[2], Value: file.Data[5:]}))
			}
		}
	}
	return d
}

// TestVolumeReadsTheSameFromATapeDrive: the same volume on a tape with two partitions.
func TestVolumeReadsTheSameFromATapeDrive(t *testing.T) {
	v, err := ltfs.Open(ctx, loaded(t, reference(t)))
	if err != nil {
		t.Fatal(err)
	}
	if got := listing(t, v); !maps.Equal(got, wanted) {
		t.Errorf("found %v, want %v", got, wanted)
	}
	if bad, err := v.Check(ctx); len(bad) != 0 || err != nil {
		t.Errorf("check: %q, %v", bad, err)
	}
}

// TestCrashesAndDamageAreNamed: each variant of the reference volume is read as far as it can be, and Check says what is wrong, on both kinds of tape.
func TestCrashesAndDamageAreNamed(t *testing.T) {
	index := func(f fstest.MapFS, name, old, with string) {
		f[name] = &fstest.MapFile{Data: bytes.Replace(f[name].Data, []byte(old), []byte(with), 1)}
	}
	for _, c := range []struct {
		name string
		hurt func(f fstest.MapFS)
		open holdfast.Kind // of the error; 0: opens
		bad  string        // part of the first problem
		left int           // files that read as they should
	}{
		{"nothing", func(fstest.MapFS) {}, 0, "", 4},
		{"no memory", func(f fstest.MapFS) { delete(f, "attr_0_80c"); delete(f, "attr_1_80c") }, 0, "partition a has no coherency", 4},
		{"index partition behind", func(f fstest.MapFS) { index(f, "0_5_R", "<generationnumber>2<", "<generationnumber>1<") }, 0, "has generation 1", 4},
		{"index partition empty", func(f fstest.MapFS) { delete(f, "0_4_F"); delete(f, "0_5_R"); delete(f, "0_6_F") }, 0, "partition a does not end with an index", 4},
		{"data after the last index", func(f fstest.MapFS) { delete(f, "1_17_E"); f["1_17_R"] = &fstest.MapFile{Data: []byte("stray")} }, 0, "partition b does not end with an index", 4},
		{"last index not closed", func(f fstest.MapFS) { delete(f, "1_16_F") }, 0, "partition b does not end with an index", 4},
		{"short record", func(f fstest.MapFS) { f["1_9_R"] = &fstest.MapFile{Data: f["1_9_R"].Data[:1000]} }, 0, "/dirA/big.bin: read LTFS file: big.bin: a record of 1000", 3},
		{"foreign", func(f fstest.MapFS) { f["0_0_R"] = &fstest.MapFile{Data: []byte("VOL2")} }, holdfast.Invalid, "", 0},
		{"labels differ", func(f fstest.MapFS) { index(f, "1_2_R", "524288", "262144") }, holdfast.Corrupt, "", 0},
		{"newer version", func(f fstest.MapFS) { index(f, "0_2_R", `version="2.4.0"`, `version="3.0.0"`) }, holdfast.Unsupported, "", 0},
		{"no index at all", func(f fstest.MapFS) { delete(f, "0_5_R"); delete(f, "1_5_R"); delete(f, "1_15_R") }, holdfast.Corrupt, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := reference(t)
			c.hurt(f)
			for kind, tape := range map[string]ltfs.Tape{"folder": ltfs.OpenFolder(f), "drive": loaded(t, f)} {
				v, err := ltfs.Open(ctx, tape)
				if c.open != 0 {
					if err == nil || holdfast.KindOf(err) != c.open {
						t.Errorf("%s: %v, want %v", kind, err, c.open)
					}
					continue
				}
				if err != nil {
					t.Errorf("%s: %v", kind, err)
					continue
				}
				bad, err := v.Check(ctx)
				if err != nil || (len(bad) > 0) != (c.bad != "") || c.bad != "" && !strings.Contains(bad[0], c.bad) {
					t.Errorf("%s: %q, %v, want %q", kind, bad, err, c.bad)
				}
				if c.left == 4 {
					if got := listing(t, v); !maps.Equal(got, wanted) {
						t.Errorf("%s: found %v", kind, got)
					}
				}
			}
		})
	}
}

// TestHolesAndOffsetsAreRead: a file of extents with a hole between, an offset in a record, and zeros at its end.
func TestHolesAndOffsetsAreRead(t *testing.T) {
	f := reference(t)
	big := slices.Concat(f["1_8_R"].Data, f["1_9_R"].Data)
	v, err := ltfs.Open(ctx, ltfs.OpenFolder(f))
	if err != nil {
		t.Fatal(err)
	}
	file := &ltfs.File{Length: 600000, Extents: []ltfs.Extent{{FileOffset: 10, Partition: "b", Block: 8, ByteOffset: 524200, Bytes: 200},
		{FileOffset: 1000, Partition: "b", Block: 8, ByteOffset: 524288 + 7, Bytes: 50}}}
	want := make([]byte, 600000)
	copy(want[10:], big[524200:524400])
	copy(want[1000:], big[524295:524345])
	var got bytes.Buffer
	if err := v.Read(ctx, file, &got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
}

// TestCoherencyIsWhatTheReferenceWrote, byte for byte.
func TestCoherencyIsWhatTheReferenceWrote(t *testing.T) {
	raw := reference(t)["attr_1_80c"].Data[5:]
	c, err := ltfs.ParseCoherency(raw)
	if want := (ltfs.Coherency{Change: 2, Generation: 2, Block: 15, UUID: "5d540140-6671-4566-a555-beec1bd8aa6f"}); err != nil || c != want || !bytes.Equal(c.Encode(), raw) {
		t.Errorf("%+v, %v; %x", c, err, c.Encode())
	}
}

// FuzzIndex: whatever an index says, it is refused or it is within bounds.
func FuzzIndex(f *testing.F) {
	r := reference(f)
	f.Add(r["0_5_R"].Data)
	f.Add(r["0_2_R"].Data)
	f.Add([]byte(`<ltfsindex version="2.4.0"><directory><contents><file><name percentencoded="true">%3a%</name></file></contents></directory></ltfsindex>`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ltfs.ParseLabel(b)
		x, err := ltfs.ParseIndex(b)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		_ = x.Walk(func(path string, f *ltfs.File) error {
			if seen[path] || strings.Contains(path, "//") {
				t.Errorf("path %q", path)
			}
			seen[path] = true
			return nil
		})
		if again, err := ltfs.ParseIndex(b); err != nil || !reflect.DeepEqual(again, x) {
			t.Error("it reads otherwise the second time")
		}
	})
}

// FuzzVolume: the reference's volume with a piece of one record put in another's place is refused, or opened, checked and read within bounds; the
// index has no checksum, so every change reaches the parts that use it.
func FuzzVolume(f *testing.F) {
	ref := reference(f)
	var records []string
	for n := range ref {
		if strings.HasSuffix(n, "_R") && bytes.HasPrefix(ref[n].Data, []byte("<?xml")) || strings.HasPrefix(n, "attr_") {
			records = append(records, n)
		}
	}
	slices.Sort(records)
	for i, n := range records {
		b := ref[n].Data
		f.Add(uint8(i), uint16(len(b)/2), uint8(3), []byte("9"))
		for _, w := range []struct{ old, with string }{{"<bytecount>", "<bytecount>7"}, {"<startblock>", "<startblock>-"}, {"<length>", "<length>999999999999"}, {"<fileoffset>0", "<fileoffset>9000000000000000000"},
			{"<partition>b", "<partition>a"}, {"<name>", "<name>../"}, {"<blocksize>524288", "<blocksize>4096"}, {"<byteoffset>0", "<byteoffset>524287"}, {"<contents>", "<contents><directory><name>x</name><contents>"}} {
			if at := bytes.Index(b, []byte(w.old)); at >= 0 {
				f.Add(uint8(i), uint16(at), uint8(len(w.old)), []byte(w.with))
			}
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, at uint16, cut uint8, with []byte) {
		if len(with) > 1<<16 {
			return
		}
		name := records[int(which)%len(records)]
		b := bytes.Clone(ref[name].Data)
		from := min(int(at), len(b))
		to := min(from+int(cut), len(b))
		fsys := maps.Clone(ref)
		fsys[name] = &fstest.MapFile{Data: slices.Replace(b, from, to, with...)}
		v, err := ltfs.Open(ctx, ltfs.OpenFolder(fsys))
		if err != nil {
			return
		}
		bad, err := v.Check(ctx)
		if err == nil && len(bad) == 0 { // what passes the check can be read
			err := v.Index.Walk(func(path string, f *ltfs.File) error {
				if f == nil || f.Length > 1<<24 {
					return nil
				}
				var n counter
				if err := v.Read(ctx, f, &n); err != nil || int64(n) != f.Length {
					t.Errorf("%s passed the check, and %d of %d bytes were read: %v", path, n, f.Length, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	})
}

// A counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
