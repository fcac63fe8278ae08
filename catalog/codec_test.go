package catalog

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
)

var updateGolden = flag.Bool("update", false, "write testdata anew")

// sample is one record of each kind with every field in use.
type sample struct {
	kind *kind
	key  []byte
	v    any
}

func samples() []sample {
	s := NewSet(pool(1), manifest(1, 1, day0))
	s.State, s.VerifiedAt = SetVerified, day0.Add(time.Hour)
	m, infos := strip(manifest(2, 1, day0))
	r := Run{ID: run(1), Kind: RunBackup, Job: "nightly", Created: day0, Started: day0, Ended: day0.Add(time.Minute), State: RunPartial,
		Error: &TaskError{holdfast.Offline, "a task failed", "look at it"}, Spec: json.RawMessage(`{"full":true}`),
		Tasks: []Task{{ID: task(1), VM: vm(1), VMName: "vm1", Host: host(1), State: RunDone, Started: day0, Ended: day0, Set: set(1),
			Reason: holdfast.ReasonFirst, Stats: s.Manifest.Stats,
			Disks: []DiskProgress{{Disk: disk(1), Name: "disk.vhdx", Reason: holdfast.ReasonFirst, Sample: holdfast.Sample{Total: 2, Done: 1, Read: 1, Sent: 1, Stored: 1}}}}}}
	h := HashKey([]byte("secret"))
	return []sample{
		{metaKind, metaKey, &meta{Format}},
		{poolKind, idKey(tPool, pool(1).ID), &Pool{pool(1), "main", "dedup", json.RawMessage(`{"path":"pool"}`), day0, PoolReady}},
		{hostKind, idKey(tHost, host(1).ID), &Host{host(1), "host1", HostEnrolled, "0a0b", day0, HostInfo{"host1", "lab", "1.0"}, "[::1]:1234"}},
		{enrolKind, enrolKeyOf(h), &EnrolKey{h, "host1", day0, day0.Add(time.Hour), day0.Add(time.Minute)}},
		{vmKind, idKey(tVM, vm(1).ID), &VM{vm(1), host(1), "vm1", 2, "running", m.Disks, day0}},
		{setKind, idKey(tSet, set(1).ID), &s},
		{trackingKind, trackingKey(vm(1), pool(1)), &Tracking{vm(1), pool(1), set(1), map[holdfast.DiskID]string{disk(1): "id-1", disk(2): "id-2"}, set(2), map[holdfast.DiskID]string{disk(1): "id-0"}}},
		{runKind, idKey(tRun, run(1).ID), &r},
		{jobKind, key(tJob, []byte("nightly")), &Job{"nightly", RunBackup, day0, json.RawMessage(`{"vms":["*"]}`), json.RawMessage(`{"mark":"2026-03-01T00:00:00Z"}`)}},
		{intentKind, idKey(tIntent, set(2).ID), &Intent{set(2), pool(1), m, infos, map[holdfast.DiskID]string{disk(1): "id-1"}}},
		{tombstoneKind, idKey(tTombstone, set(1).ID), &Tombstone{set(1), pool(1)}},
		{eventKind, eventKey(7), &eventRecord{7, day0, holdfast.EventHostOnline, uint8(holdfast.Warning), "it is back", map[string]string{"host": "host1"}}},
		{settingKind, key(tSetting, []byte("page")), &setting{json.RawMessage(`{"size":50}`)}},
	}
}

// TestRecordsAreWrittenAsTheyWere compares each kind of record with the bytes that an earlier build wrote, and reads those.
func TestRecordsAreWrittenAsTheyWere(t *testing.T) {
	const golden = "testdata/records.txt"
	var out strings.Builder
	for _, s := range samples() {
		rec, err := encode(s.kind, s.v)
		must(t, err)
		fmt.Fprintf(&out, "%s\n%x\n%02x %02x %s %x\n\n", s.kind.name, s.key, rec[0], rec[1], rec[2:len(rec)-4], rec[len(rec)-4:])
	}
	if *updateGolden {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(golden, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if out.String() != string(want) {
		t.Errorf("records changed; a changed body needs a new version and a migration\n got: %s\nwant: %s", out.String(), want)
	}
	blocks := strings.Split(strings.TrimSpace(string(want)), "\n\n")
	for i, s := range samples() {
		lines := strings.Split(blocks[i], "\n")
		k, err := hex.DecodeString(lines[1])
		must(t, err)
		head, err := hex.DecodeString(lines[2][0:2] + lines[2][3:5])
		must(t, err)
		body := lines[2][6 : len(lines[2])-9]
		tail, err := hex.DecodeString(lines[2][len(lines[2])-8:])
		must(t, err)
		got := reflect.New(reflect.TypeOf(s.v).Elem()).Interface()
		must(t, decode(s.kind, k, append(append(head, body...), tail...), got))
		if !reflect.DeepEqual(got, s.v) {
			t.Errorf("%s: %+v, want %+v", s.kind.name, got, s.v)
		}
	}
}

func TestDamagedAndNewerRecordsAreNamed(t *testing.T) {
	s := samples()[5]
	rec, err := encode(s.kind, s.v)
	must(t, err)
	sum := func(b []byte) []byte { return frame(b[0], b[1], b[2:]) }
	body := rec[2 : len(rec)-4]
	for name, c := range map[string]struct {
		rec  []byte
		want holdfast.Kind
	}{
		"short":         {rec[:5], holdfast.Corrupt},
		"empty":         {nil, holdfast.Corrupt},
		"flipped":       {append([]byte{rec[0], rec[1], rec[2] ^ 1}, rec[3:]...), holdfast.Corrupt},
		"other type":    {sum(append([]byte{2, 1}, body...)), holdfast.Corrupt},
		"version 0":     {sum(append([]byte{6, 0}, body...)), holdfast.Corrupt},
		"newer":         {sum(append([]byte{6, 2}, body...)), holdfast.Unsupported},
		"unknown field": {sum(append([]byte{6, 1}, `{"new":1}`...)), holdfast.Corrupt},
	} {
		var v Set
		err := decode(s.kind, s.key, c.rec, &v)
		wantKind(t, name, err, c.want)
		if err == nil || !strings.Contains(err.Error(), "set "+set(1).String()) || holdfast.HintOf(err) == "" {
			t.Errorf("%s: %v does not name the record, or what to do", name, err)
		}
	}
}

func TestEarlierVersionsAreBroughtUpToDate(t *testing.T) {
	type now struct{ Name, State string }
	k := &kind{typ: 99, version: 3, name: "thing", migrate: map[byte]func(json.RawMessage) (json.RawMessage, error){
		1: func(b json.RawMessage) (json.RawMessage, error) {
			return bytes.Replace(b, []byte("Title"), []byte("Name"), 1), nil
		},
		2: func(b json.RawMessage) (json.RawMessage, error) {
			return bytes.Replace(b, []byte("}"), []byte(`,"State":"old"}`), 1), nil
		},
	}}
	for version, body := range map[byte]string{1: `{"Title":"x"}`, 2: `{"Name":"x"}`, 3: `{"Name":"x","State":"old"}`} {
		rec, err := encode(&kind{typ: 99, version: version}, json.RawMessage(body))
		must(t, err)
		var v now
		if err := decode(k, nil, rec, &v); err != nil || v != (now{"x", "old"}) {
			t.Errorf("version %d: %+v %v", version, v, err)
		}
	}
	delete(k.migrate, 1)
	rec, err := encode(&kind{typ: 99, version: 1}, json.RawMessage(`{}`))
	must(t, err)
	wantKind(t, "no way up", decode(k, nil, rec, &now{}), holdfast.Corrupt)
}

func TestCatalogOfNewerFormatIsRefused(t *testing.T) {
	f := fsys.NewMem(1)
	c, err := Open(f, "catalog")
	must(t, err)
	update(t, c, func(tx *Tx) error { return put(tx, metaKind, metaKey, &meta{Format + 1}) })
	must(t, c.Close())
	_, err = Open(f, "catalog")
	wantKind(t, "open", err, holdfast.Unsupported)
}

func raw(i holdfast.ID) []byte { return i[:] }

func TestCheckFindsWhatDoesNotFit(t *testing.T) {
	for name, harm := range map[string]func(*Tx) error{
		"index entry gone":     func(tx *Tx) error { tx.b.Delete(key(tSetVM, raw(vm(1).ID), timeKey(day0), raw(set(1).ID))); return nil },
		"index entry too many": func(tx *Tx) error { tx.b.Set(key(tPoolName, []byte("x\x00"), raw(pool(7).ID)), nil); return nil },
		"damaged record":       func(tx *Tx) error { tx.b.Set(idKey(tPool, pool(1).ID), []byte("damage")); return nil },
		"another's record": func(tx *Tx) error {
			p, err := tx.Pool(pool(1))
			return errors.Join(err, put(tx, poolKind, idKey(tPool, pool(8).ID), &p))
		},
		"tombstone of nothing": func(tx *Tx) error {
			return put(tx, tombstoneKind, idKey(tTombstone, set(9).ID), &Tombstone{set(9), pool(1)})
		},
		"unknown table": func(tx *Tx) error { tx.b.Set([]byte("?"), nil); return nil },
	} {
		c, err := Open(fsys.NewMem(1), "c")
		must(t, err)
		update(t, c, func(tx *Tx) error {
			must(t, tx.PutPool(Pool{ID: pool(1), Name: "one"}))
			return tx.PutSet(NewSet(pool(1), manifest(1, 1, day0)))
		})
		must(t, c.Check())
		update(t, c, harm)
		wantKind(t, name, c.Check(), holdfast.Corrupt)
		must(t, c.Close())
	}
}

// FuzzRecord reads arbitrary bodies as each kind of record: what reads is written again, reads the same and is then stable.
func FuzzRecord(f *testing.F) {
	protos := samples()
	for i, s := range protos {
		rec, err := encode(s.kind, s.v)
		must(f, err)
		f.Add(byte(i), rec[2:len(rec)-4])
	}
	f.Fuzz(func(t *testing.T, i byte, body []byte) {
		s := protos[int(i)%len(protos)]
		rec := frame(s.kind.typ, s.kind.version, body)
		v := reflect.New(reflect.TypeOf(s.v).Elem()).Interface()
		if decode(s.kind, s.key, rec, v) != nil {
			return
		}
		once, err := encode(s.kind, v)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		w := reflect.New(reflect.TypeOf(s.v).Elem()).Interface()
		must(t, decode(s.kind, s.key, once, w))
		twice, err := encode(s.kind, w)
		must(t, err)
		if !bytes.Equal(once, twice) {
			t.Fatalf("not stable: %q, %q", once, twice)
		}
		if err := decode(s.kind, s.key, body, w); err == nil && !bytes.Equal(body[:1], []byte{s.kind.typ}) {
			t.Fatal("a record of another type was read")
		}
	})
}
