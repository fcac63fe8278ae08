package media_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/tape/media"
)

var day = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

func id(n byte) holdfast.ID { return holdfast.ID{n, 15: 1} }

func book() *media.Book {
	return &media.Book{Pool: holdfast.PoolID{ID: id(9)},
		Sets: []*media.Set{{ID: id(1), Created: day}},
		Cartridges: []*media.Cartridge{
			{ID: id(12), Barcode: "B", State: media.Writable, Set: id(1), Seq: 2},
			{ID: id(11), Barcode: "A", State: media.Full, Set: id(1), Seq: 1},
			{ID: id(13), Barcode: "W", State: media.Writable, Set: id(1), Seq: 3, WORM: true},
			{Barcode: "C", State: media.Blank}},
		Backups: []*media.Backup{{ID: holdfast.SetID{ID: id(21)}, Media: id(1), Record: id(31)}, {ID: holdfast.SetID{ID: id(22)}, Media: id(1), Record: id(32)}}}
}

// TestTheBookIsReadAsWritten: after a save the same book is read, another pool's is refused, and so is one with a changed byte.
func TestTheBookIsReadAsWritten(t *testing.T) {
	f, b := fsys.NewMem(1), book()
	if err := b.Save(f); err != nil {
		t.Fatal(err)
	}
	got, err := media.Load(f, b.Pool)
	if err != nil || !reflect.DeepEqual(got, b) {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := media.Load(f, holdfast.PoolID{ID: id(8)}); holdfast.KindOf(err) != holdfast.Invalid {
		t.Errorf("another pool's: %v", err)
	}
	raw, err := fsys.ReadFile(f, media.File, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		bad := append([]byte(nil), raw...)
		if bad[i] ^= 1; bad[i] == raw[i] {
			t.Fatal("nothing was changed")
		}
		if err := fsys.Replace(f, media.File, bad); err != nil {
			t.Fatal(err)
		}
		if got, err := media.Load(f, b.Pool); err == nil && !reflect.DeepEqual(got, b) {
			t.Fatalf("byte %d changed, and another book was read", i)
		}
	}
}

// TestAMediaSetExpiresAndIsRecycledAsAWhole: not before it is closed, its time is up and nothing is on it; by force at any time, and then nothing of it is left.
func TestAMediaSetExpiresAndIsRecycledAsAWhole(t *testing.T) {
	b := book()
	s := b.Set(id(1))
	if c := b.Next(s.ID); c == nil || c.Barcode != "W" {
		t.Errorf("writing goes on with %+v", c)
	}
	state := func() (out []media.State) {
		for _, c := range b.Of(s.ID) {
			out = append(out, c.State)
		}
		return
	}
	want := func(when string, st ...media.State) {
		t.Helper()
		if got := state(); !reflect.DeepEqual(got, st) {
			t.Errorf("%s: %v, want %v", when, got, st)
		}
	}
	b.Delete(holdfast.SetID{ID: id(21)})
	b.Expire(day.AddDate(9, 0, 0), time.Hour)
	want("open", media.Full, media.Writable, media.Writable)
	b.Close(s, day)
	b.Expire(day.AddDate(9, 0, 0), time.Hour)
	want("with a backup set", media.Full, media.Full, media.Full)
	again := book()
	again.Close(again.Set(id(1)), day)
	b.Delete(holdfast.SetID{ID: id(22)})
	b.Expire(day.Add(time.Minute), time.Hour)
	want("too early", media.Full, media.Full, media.Full)
	b.Expire(day.Add(time.Hour), time.Hour)
	want("in time", media.Expired, media.Expired, media.Expired)
	b.Recycle(s, day)
	want("recycled", media.Recycled, media.Recycled, media.Retired)
	again.Recycle(again.Set(id(1)), day)
	if len(again.Backups) != 0 || len(again.Deleted) != 2 {
		t.Errorf("recycled by force: %d backup sets are left, %d deletions", len(again.Backups), len(again.Deleted))
	}
	for _, c := range b.Cartridges {
		if c.Takeable() != (c.Barcode != "W") {
			t.Errorf("%s is takeable: %v", c.Barcode, c.Takeable())
		}
		c.Set = holdfast.ID{}
	}
	if b.Forget(); len(b.Sets) != 0 || len(b.Deleted) != 0 {
		t.Errorf("left: %v, %v", b.Sets, b.Deleted)
	}
}
