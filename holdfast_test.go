package holdfast

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite golden files")

func sampleManifest() Manifest {
	id := func(n byte) ID { var i ID; i[0], i[15] = n, n; return i }
	return Manifest{
		ID: SetID{id(1)}, Created: time.Date(2026, 11, 22, 2, 0, 0, 0, time.UTC),
		VM: VMInfo{ID: VMID{id(2)}, Name: "db <1>", Generation: 2, Version: "9.0"}, Host: HostID{id(3)}, HostName: "hv1", Run: RunID{id(4)},
		Kind: Incremental, Parent: SetID{id(5)}, Consistency: CrashConsistent, Note: "VSS writer timed out",
		Disks: []Disk{{ID: DiskID{id(6)}, Name: "os.vhdx", Size: 1 << 30, Format: "vhdx", Subformat: "dynamic", BlockSize: 32 << 20, LogicalSector: 512,
			PhysicalSector: 4096, Controller: "scsi", Slot: 1, Inherit: true, Stats: Stats{Logical: 1 << 30, Read: 4096}}},
		Attachments: []Attachment{{Name: "vm.json", Data: []byte("{}")}}, Stats: Stats{Logical: 1 << 30, Read: 4096},
	}
}

// TestManifestGolden pins the canonical form: sets on media are read by it for ever.
func TestManifestGolden(t *testing.T) {
	m := sampleManifest()
	b, err := MarshalManifest(&m)
	if err != nil {
		t.Fatal(err)
	}
	const name = "testdata/manifest.json"
	if *update {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Fatalf("canonical form changed:\n%s\nwant\n%s", b, want)
	}
	if _, err := UnmarshalManifest(want); err != nil {
		t.Fatal(err)
	}
}

func TestManifestRefusesWhatItCannotWriteAgain(t *testing.T) {
	m := sampleManifest()
	good, _ := MarshalManifest(&m)
	for name, b := range map[string]string{
		"unknown field":  strings.Replace(string(good), `{"id"`, `{"new":1,"id"`, 1),
		"white space":    " " + string(good),
		"trailing bytes": string(good) + "{}",
		"disk twice":     strings.Replace(string(good), `"disks":[`, `"disks":[`+string(good[bytes.Index(good, []byte(`"disks":[`))+9:bytes.Index(good, []byte(`],"attachments"`))])+",", 1),
		"no parent":      strings.Replace(string(good), `"parent":"05000000-0000-0000-0000-000000000005",`, "", 1),
		"size":           strings.Replace(string(good), `"size":1073741824`, `"size":1073741825`, 1),
	} {
		if _, err := UnmarshalManifest([]byte(b)); !errors.Is(err, Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestOfBadNamesIsCanonical(t *testing.T) {
	m := sampleManifest()
	m.VM.Name = "db\xff"
	b, err := MarshalManifest(&m)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := UnmarshalManifest(b); err != nil || got.VM.Name != "db\uFFFD" {
		t.Fatalf("%q, %v", got.VM.Name, err)
	}
}

func TestSeverityReadsBack(t *testing.T) {
	for s := Info; s <= Alarm; s++ {
		var got Severity
		if b, err := s.MarshalText(); err != nil || got.UnmarshalText(b) != nil || got != s {
			t.Errorf("%v: %v", s, got)
		}
	}
	var got Severity
	if err := got.UnmarshalText([]byte("loud")); !errors.Is(err, Invalid) {
		t.Error(err)
	}
}

func FuzzManifest(f *testing.F) {
	m := sampleManifest()
	b, _ := MarshalManifest(&m)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := UnmarshalManifest(b)
		if err != nil {
			return
		}
		again, err := MarshalManifest(&m)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("read %q, wrote %q, %v", b, again, err)
		}
	})
}

func TestIDs(t *testing.T) {
	a, b := NewTimeID(time.UnixMilli(1)), NewTimeID(time.UnixMilli(2))
	if bytes.Compare(a[:], b[:]) >= 0 {
		t.Errorf("%v does not sort before %v", a, b)
	}
	for _, s := range []string{a.String(), strings.ToUpper(a.String()), "{" + a.String() + "}"} {
		if got, err := ParseID(s); err != nil || got != a {
			t.Errorf("%q: %v %v", s, got, err)
		}
	}
	for _, s := range []string{"", "x", a.String()[1:], strings.Replace(a.String(), "-", "x", 1), strings.Repeat("g", 36)} {
		if _, err := ParseID(s); !errors.Is(err, Invalid) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestErrorsKeepKindAndAdvice(t *testing.T) {
	inner := Errorf(NoSpace, "write container", "%w", os.ErrExist).Advise("add a path")
	err := fmt.Errorf("back up db: %w", inner)
	if KindOf(err) != NoSpace || !errors.Is(err, NoSpace) || !errors.Is(err, os.ErrExist) || HintOf(err) != "add a path" {
		t.Fatalf("%v: kind %v, hint %q", err, KindOf(err), HintOf(err))
	}
	if got := err.Error(); got != "back up db: write container: file already exists" {
		t.Fatal(got)
	}
	if KindOf(errors.New("x")) != Internal || KindOf(Offline) != Offline {
		t.Fatal("kinds of bare errors")
	}
	outer := Errorf(Offline, "", "no answer: %w", inner)
	if HintOf(outer) != "add a path" {
		t.Fatal("advice of the cause is lost")
	}
}

func TestParseChunking(t *testing.T) {
	for _, s := range []string{"adaptive", "variable", "fixed-64K", "fixed-128K", "fixed-256K", "fixed-512K"} {
		c, err := ParseChunking(s)
		if err != nil || c.Check() != nil || c.String() != s {
			t.Errorf("%s: %+v %v %v", s, c, err, c.Check())
		}
	}
	for _, s := range []string{"fixed", "fixed-1K", "fixed-100K", "fixed-64", "rabin"} {
		if _, err := ParseChunking(s); !errors.Is(err, Invalid) || HintOf(err) == "" {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestDigestDependsOnDomain(t *testing.T) {
	a, b := Domain{}.Hasher(), Domain{Key: [32]byte{1}}.Hasher()
	if a.Sum([]byte("x")) == b.Sum([]byte("x")) || a.Sum([]byte("x")) != (Domain{}).Hasher().Sum([]byte("x")) {
		t.Fatal("keying")
	}
}
