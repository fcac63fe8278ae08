package library_test

import (
	"bytes"
	"context"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/iscsi/tgttest"
	"github.com/holdfast-backup/holdfast/tape/library"
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

// emulated returns the units of an emulated library, drives in backward order, and a count of how often they were closed.
func emulated(t *testing.T, lib *emu.Library, drives int, closed *int) library.Units {
	t.Helper()
	u := library.Units{Closer: closing(func() error { *closed++; return nil })}
	for i := drives - 1; i >= -1; i-- {
		x, err := library.Look(ctx, lib.Connect("a", emu.Unit(i)), "emulated")
		must(t, err)
		u.List = append(u.List, x)
	}
	return u
}

type closing func() error

func (c closing) Close() error { return c() }

// TestDrivesAreMatchedBySerialNumber: whatever the order of the units, a cartridge loaded at an element is found in that element's drive.
func TestDrivesAreMatchedBySerialNumber(t *testing.T) {
	e := emu.New(emu.Options{Drives: 3, Slots: 4})
	e.Add(0, emu.Media{Barcode: "HF0001L8"})
	closed := 0
	l, err := library.New(ctx, emulated(t, e, 3, &closed), library.Options{Log: t.Logf})
	must(t, err)
	if len(l.Bays()) != 3 {
		t.Fatalf("%d drives", len(l.Bays()))
	}
	b, err := l.Bay("257")
	must(t, err)
	if same, err := l.Bay(b.Serial); err != nil || same.Element != b.Element || !strings.HasSuffix(b.Serial, "D1") {
		t.Errorf("%+v, %v", b, err)
	}
	_, err = l.Bay("nothing")
	wantKind(t, "a drive that is not there", err, holdfast.NotExist)
	must(t, l.Changer().Load(ctx, "HF0001L8", 257))
	for _, bay := range l.Bays() {
		h, err := l.Take(ctx, bay.Element)
		must(t, err)
		if err := h.Drive.Ready(ctx); (err == nil) != (bay.Element == 257) {
			t.Errorf("element %d: %v", bay.Element, err)
		}
		must(t, h.Release(ctx))
	}
	must(t, l.Close(ctx))
	if must(t, l.Close(ctx)); closed != 1 {
		t.Errorf("closed %d times", closed)
	}
}

// TestADriveHasOneUser, and a library with a drive in use is not closed under its user.
func TestADriveHasOneUser(t *testing.T) {
	e := emu.New(emu.Options{Drives: 1, Slots: 2})
	closed := 0
	l, err := library.New(ctx, emulated(t, e, 1, &closed), library.Options{Key: 42})
	must(t, err)
	h, err := l.Take(ctx, emu.AddrDrive)
	must(t, err)
	_, err = l.Take(ctx, emu.AddrDrive)
	wantKind(t, "the second user", err, holdfast.Busy)
	wantKind(t, "closing", l.Close(ctx), holdfast.Busy)
	if r, err := e.Connect("other host", emu.Drive(0)).Exec(ctx, scsi.Command{CDB: scsi.Rewind()}); err != nil || r.Status == scsi.Good {
		t.Errorf("another host rewinds a reserved drive: %v, %v", r.Status, err)
	}
	must(t, h.Release(ctx))
	must(t, h.Release(ctx))
	h, err = l.Take(ctx, emu.AddrDrive)
	must(t, err)
	must(t, h.Release(ctx))
	must(t, l.Close(ctx))
	_, err = l.Take(ctx, emu.AddrDrive)
	wantKind(t, "a closed library", err, holdfast.Offline)
}

// TestWhatIsNoLibraryIsRefused: no guess is made about which drive is where.
func TestWhatIsNoLibraryIsRefused(t *testing.T) {
	e := emu.New(emu.Options{Drives: 2, Slots: 2})
	closed := 0
	all := emulated(t, e, 2, &closed).List
	nameless := []library.Unit{all[0], all[1], all[2]}
	nameless[0].Serial, nameless[1].Serial = "", ""
	twin := []library.Unit{all[0], all[0], all[2]}
	for _, c := range []struct {
		name string
		us   []library.Unit
		kind holdfast.Kind
	}{
		{"nothing", nil, holdfast.NotExist},
		{"a changer alone", all[2:], holdfast.NotExist},
		{"drives alone", all[:2], holdfast.Invalid},
		{"two changers", []library.Unit{all[0], all[2], all[2]}, holdfast.Invalid},
		{"drives without serial numbers", nameless, holdfast.Unsupported},
		{"one serial number twice", twin, holdfast.Invalid},
	} {
		before := closed
		_, err := library.New(ctx, library.Units{List: c.us, Closer: closing(func() error { closed++; return nil })}, library.Options{})
		wantKind(t, c.name, err, c.kind)
		if closed != before+1 || holdfast.HintOf(err) == "" {
			t.Errorf("%s: closed %d times, hint %q", c.name, closed-before, holdfast.HintOf(err))
		}
	}
	l, err := library.New(ctx, library.Units{List: all[:1]}, library.Options{})
	must(t, err)
	if l.Changer() != nil || len(l.Bays()) != 1 {
		t.Error("a drive that stands alone has no robot and is one bay")
	}
	l, err = library.New(ctx, library.Units{List: nameless}, library.Options{Serials: map[uint16]string{256: all[1].Serial, 257: all[0].Serial}})
	wantKind(t, "named serials that no drive has", err, holdfast.Unsupported)
	l, err = library.New(ctx, library.Units{List: all}, library.Options{Serials: map[uint16]string{256: all[0].Serial, 257: all[1].Serial}})
	must(t, err)
	if b := l.Bays(); b[0].Serial != all[0].Serial {
		t.Error("the serial numbers that were given do not count")
	}
}

// TestAKeeperOpensALibraryOnce for all its users, and again after the last one went.
func TestAKeeperOpensALibraryOnce(t *testing.T) {
	e := emu.New(emu.Options{Drives: 2, Slots: 2})
	var mu sync.Mutex
	opened, closed := 0, 0
	k := library.NewKeeper(map[string]library.Opener{"emu": func(ctx context.Context, a library.Address, o library.Options) (library.Units, error) {
		mu.Lock()
		defer mu.Unlock()
		opened++
		if a.Rest != "one" {
			return library.Units{}, holdfast.Errorf(holdfast.NotExist, "open", "no library %q", a.Rest)
		}
		return emulated(t, e, 2, &closed), nil
	}})
	var wg sync.WaitGroup
	var libs [8]*library.Library
	var backs [8]func(context.Context) error
	for i := range libs {
		wg.Go(func() {
			var err error
			if libs[i], backs[i], err = k.Use(ctx, "emu:one", library.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, l := range libs {
		if l != libs[0] {
			t.Error("users have different libraries")
		}
		if i > 0 {
			must(t, backs[i](ctx))
		}
	}
	must(t, backs[1](ctx)) // again: counts once
	if opened != 1 || closed != 0 {
		t.Errorf("opened %d times, closed %d times", opened, closed)
	}
	must(t, backs[0](ctx))
	l, back, err := k.Use(ctx, "emu:one", library.Options{})
	must(t, err)
	if l == libs[0] || opened != 2 || closed != 1 {
		t.Errorf("opened %d times, closed %d times", opened, closed)
	}
	must(t, back(ctx))
	_, _, err = k.Use(ctx, "emu:two", library.Options{})
	wantKind(t, "a library that is not there", err, holdfast.NotExist)
	_, _, err = k.Use(ctx, "nonsense:two", library.Options{})
	wantKind(t, "a scheme that is not there", err, holdfast.Invalid)
}

// TestALibraryOfOtherPeople: over iSCSI, with secrets from files, checksums, and drives that the changer names itself.
func TestALibraryOfOtherPeople(t *testing.T) {
	tgt := tgttest.Start(t, tgttest.Options{Drives: 2, Slots: 4, Media: []string{"HF0001L8"}, User: "alice", Secret: "secret-of-alice", Digests: true})
	file := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(file, []byte("secret-of-alice\nnotes\n"), 0o600))
	address := "iscsi://" + tgt.Portal + "/" + tgttest.Target + "?digests=on&user=alice&secret-file=" + url.QueryEscape(file)
	o := library.Options{Secrets: os.ReadFile, Log: t.Logf, Key: 7}
	l, err := library.Open(ctx, address, o)
	must(t, err)
	if len(l.Bays()) != 2 || l.Bays()[0].Element != tgttest.AddrDrive {
		t.Fatalf("%+v", l.Bays())
	}
	for _, b := range l.Bays() {
		must(t, l.Changer().Load(ctx, "HF0001L8", b.Element))
		h, err := l.Take(ctx, b.Element)
		must(t, err)
		must(t, h.Drive.Ready(ctx))
		block := bytes.Repeat([]byte{byte(b.Element)}, 100000)
		must(t, h.Drive.Write(ctx, block))
		must(t, h.Drive.Flush(ctx, 1))
		must(t, h.Drive.Rewind(ctx))
		got := make([]byte, 1<<20)
		if n, err := h.Drive.Read(ctx, got); err != nil || !bytes.Equal(got[:n], block) {
			t.Errorf("drive %d: %d bytes, %v", b.Element, n, err)
		}
		must(t, h.Drive.Unload(ctx))
		must(t, h.Release(ctx))
		_, err = l.Changer().Unload(ctx, b.Element)
		must(t, err)
	}
	must(t, l.Close(ctx))
	u, err := library.Find(ctx, address, o)
	must(t, err)
	kinds := map[scsi.DeviceType]int{}
	for _, x := range u.List {
		kinds[x.Type]++
	}
	if kinds[scsi.TypeChanger] != 1 || kinds[scsi.TypeTape] != 2 {
		t.Errorf("%v", kinds)
	}
	must(t, u.Close())
	o.Secrets = nil
	_, err = library.Open(ctx, address, o)
	wantKind(t, "secrets that cannot be read", err, holdfast.Unsupported)
	_, err = library.Open(ctx, "iscsi://"+tgt.Portal+"/"+tgttest.Target, o)
	wantKind(t, "no secret", err, holdfast.Permission)
}

// TestAddresses come back as they were written, name one device by one key, and never hold a secret.
func TestAddresses(t *testing.T) {
	for in, key := range map[string]string{
		"iscsi://tape.example/iqn.2001-04.com.example:lib":                                     "iscsi://tape.example:3260/iqn.2001-04.com.example:lib",
		"iscsi://[fd00::1]:3261/iqn.x:y?digests=on":                                            "iscsi://[fd00::1]:3261/iqn.x:y",
		"iscsi://h:1/iqn.x:y?user=u&secret-file=/s&target-secret-file=%2Ft%26&initiator=iqn.a": "iscsi://h:1/iqn.x:y",
		"sg:/dev/sg3":             "sg:/dev/sg3",
		"sg:/dev/sg3,/dev/sg4":    "sg:/dev/sg3",
		"sg:all":                  "sg:all",
		"sg:serial:ABC 123":       "sg:serial:ABC 123",
		"emu:anything:/at/all?ok": "emu:anything:/at/all?ok",
	} {
		a, err := library.Parse(in)
		if err != nil || a.Key() != key {
			t.Errorf("%s: %q, %v", in, a.Key(), err)
			continue
		}
		if b, err := library.Parse(a.String()); err != nil || a.String() != b.String() || b.Key() != key {
			t.Errorf("%s came back as %s: %v", in, a, err)
		}
	}
	for _, in := range []string{"", "sg", "sg:", "sg:dev/sg3", "sg:/dev/sg3,", "sg:serial:", ":x", "iscsi://", "iscsi://h", "iscsi://h/", "iscsi:///iqn.x", "iscsi://h/a/b",
		"iscsi://u:p@h/iqn.x", "iscsi://h/iqn.x?secret=x", "iscsi://h/iqn.x?user=u", "iscsi://h/iqn.x?digests=maybe", "iscsi://h/iqn.x?user=a&user=b&secret-file=c",
		"iscsi://h/iqn.x?target-secret-file=/t", "sg:/dev/sg3\n", strings.Repeat("sg:/", 2000)} {
		_, err := library.Parse(in)
		wantKind(t, in, err, holdfast.Invalid)
	}
}

var _ io.Closer = closing(nil)
