package wire

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-backup/holdfast"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func id(n byte) holdfast.ID {
	return holdfast.ID{n, 1, 2, 3, 4, 5, 0x46, 7, 0x88, 9, 10, 11, 12, 13, 14, 15}
}

func digest(n byte) (d holdfast.Digest) {
	for i := range d {
		d[i] = n + byte(i)
	}
	return d
}

func exampleManifest() holdfast.Manifest {
	return holdfast.Manifest{
		ID: holdfast.SetID{ID: id(1)}, Created: time.Date(2026, 1, 2, 3, 4, 5, 6000000, time.UTC),
		VM: holdfast.VMInfo{ID: holdfast.VMID{ID: id(2)}, Name: `Büro "1" <&>`, Generation: 2}, Host: holdfast.HostID{ID: id(3)}, HostName: "host",
		Kind: holdfast.Incremental, Parent: holdfast.SetID{ID: id(4)}, Consistency: holdfast.AppConsistent,
		Disks: []holdfast.Disk{{ID: holdfast.DiskID{ID: id(5)}, Name: "c.vhdx", Size: 1 << 30, Format: "vhdx", Subformat: "dynamic", BlockSize: 2 << 20,
			LogicalSector: 512, PhysicalSector: 4096, Controller: "scsi", Inherit: true}},
		Attachments: []holdfast.Attachment{{Name: "vm.json", Data: []byte("{}")}},
	}
}

// examples has one message of each type; their encodings are golden.
func examples() []Message {
	m := exampleManifest()
	tokens := map[holdfast.DiskID]string{{ID: id(5)}: "rct-1", {ID: id(6)}: "rct-2"}
	key := bytes.Repeat([]byte{7}, 32)
	group := holdfast.Group{Codec: holdfast.Plain, Chunks: []holdfast.Piece{{Digest: digest(1), Len: 5}, {Digest: digest(2), Len: 3}}, Payload: []byte("holdfast")}
	chunking, _ := holdfast.ParseChunking("")
	return []Message{
		{Type: TypeBegin, Body: Begin{holdfast.TaskID{ID: id(9)}}},
		{Type: TypeBegan, Body: Began{Set: m.ID, Chunking: chunking, DomainKey: key, Compression: "default", Streams: 4, Parent: &m, Tokens: tokens}},
		{Type: TypeStart, Body: m},
		{Type: TypeAsk, Channel: 3, Body: Ask{7, []holdfast.Digest{digest(1), digest(2), digest(3)}}},
		{Type: TypeHave, Channel: 3, Body: Have{7, []bool{true, false, true}}},
		{Type: TypePut, Channel: 3, Body: &group},
		{Type: TypePlace, Channel: 3, Body: Place{[]holdfast.Ref{
			{Extent: holdfast.Extent{Off: 0, Len: 5}, Digest: digest(1)},
			{Extent: holdfast.Extent{Off: 4096, Len: 1 << 40}},
			{Extent: holdfast.Extent{Off: 2 << 40, Len: 2}, Digest: digest(2), Skip: 1}}}},
		{Type: TypeDiskDone, Channel: 3},
		{Type: TypeCommit, Body: m},
		{Type: TypeCommitted, Body: Committed{m}},
		{Type: TypeTracking, Body: Tracking{m.ID, tokens}},
		{Type: TypeTracked},
		{Type: TypeOpenSet, Body: Begin{holdfast.TaskID{ID: id(9)}}},
		{Type: TypeSetOpened, Body: SetOpened{m, key}},
		{Type: TypeWant, Channel: 1, Body: Want{holdfast.Extents{{Off: 0, Len: 512}, {Off: 1024, Len: 512}}}},
		{Type: TypeParcel, Channel: 1, Body: &holdfast.Parcel{Group: group, Places: []holdfast.Place{{Off: 512, At: 1, Len: 4}, {Off: 0, At: 5, Len: 3}}}},
		{Type: TypeDelivered, Channel: 1},
		{Type: TypeFail, Body: Failure{holdfast.NoSpace, "the pool is full", "add storage"}},
		{Type: TypeDone},
	}
}

// goldenFrames returns every kind of frame as it is on the wire, by name.
func goldenFrames(t testing.TB) map[string][]byte {
	t.Helper()
	h := hello{[]uint16{2, 1}, id(1), token(digest(9)), 41, 10 << 20}
	w := welcome{1, id(1), token(digest(9)), 17, 64 << 20}
	out := map[string][]byte{
		"Hello":   control(TypeHello, h.append(nil)).b,
		"Welcome": control(TypeWelcome, w.append(nil)).b,
		"Ack":     control(TypeAck, []byte{1, 2, 3, 4}).b,
		"Ping":    control(TypePing, nil).b,
		"Refuse":  refusal(holdfast.Errorf(holdfast.Permission, "", "unknown host").Advise("enrol it")).b,
		"Close":   control(TypeClose, nil).b,
	}
	for i, m := range examples() {
		fs, err := encode(&m)
		if err != nil || len(fs) != 1 {
			t.Fatal(m.Type, err)
		}
		fs[0].seal(header{typ: m.Type, channel: m.Channel, seq: uint32(i + 1)})
		out[m.Type.String()] = fs[0].b
	}
	return out
}

// Goal: whoever changes what is on the wire notices, and makes a new version of the protocol.
// Method: the frames are files; the checksum over them stands in the version's line.
func TestGoldenFramesAreThoseOfTheNewestVersion(t *testing.T) {
	frames := goldenFrames(t)
	if len(frames) != len(typeNames) {
		t.Fatalf("%d golden frames for %d types", len(frames), len(typeNames))
	}
	dir := filepath.Join("testdata", "golden", fmt.Sprintf("v%d", versions[0].number))
	names := make([]string, 0, len(frames))
	for name := range frames {
		names = append(names, name)
	}
	slices.Sort(names)
	sum := sha256.New()
	for _, name := range names {
		path := filepath.Join(dir, name+".hex")
		text := hex.Dump(frames[name])
		if *update {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(want) != text {
			t.Errorf("%s is not as it was; it is now\n%s", name, text)
		}
		fmt.Fprintf(sum, "%s %s", name, text)
	}
	if got := hex.EncodeToString(sum.Sum(nil)[:8]); got != versions[0].golden {
		t.Errorf("the golden frames have the checksum %s, the line of version %d says %q: make a new line", got, versions[0].number, versions[0].golden)
	}
}

func TestEveryMessageReadsBackAsItWasSent(t *testing.T) {
	for _, m := range examples() {
		fs, err := encode(&m)
		if err != nil {
			t.Fatal(m.Type, err)
		}
		got, err := parse(m.Type, m.Channel, fs[0].payload(), fs[0])
		if err != nil {
			t.Fatal(m.Type, err)
		}
		body := got.Body
		if p, ok := body.(*holdfast.Parcel); ok {
			if p.Free == nil {
				t.Error("a parcel does not own its frame")
			}
			body = &holdfast.Parcel{Group: p.Group, Places: p.Places}
		}
		if !reflect.DeepEqual(body, m.Body) {
			t.Errorf("%v: got %+v, want %+v", m.Type, body, m.Body)
		}
		got.Release()
	}
}

func TestLongMessagesAreCutAndJoined(t *testing.T) {
	m := exampleManifest()
	for i := range 3 {
		m.Attachments = append(m.Attachments, holdfast.Attachment{Name: fmt.Sprint(i), Data: bytes.Repeat([]byte{byte(i), 0xfe}, 1<<20)})
	}
	var b bytes.Buffer
	w := NewStreamWriter(&b)
	if err := w.Send(Message{Type: TypeStart, Body: m}); err != nil {
		t.Fatal(err)
	}
	if err := w.Done(); err != nil {
		t.Fatal(err)
	}
	r := NewStreamReader(&b)
	got, err := r.Next()
	if err != nil || !reflect.DeepEqual(got.Body, m) {
		t.Fatal("not the same", err)
	}
	if _, err := r.Next(); err != io.EOF {
		t.Fatal(err)
	}

	d := openDoor(t, LinkOptions{})
	agent, appliance := pair(t, d, nil, LinkOptions{ReplayBytes: 1 << 20}) // longer than the buffer
	if err := agent.Send(t.Context(), Message{Type: TypeStart, Body: m}); err != nil {
		t.Fatal(err)
	}
	if got, err = appliance.Recv(t.Context()); err != nil || !reflect.DeepEqual(got.Body, m) {
		t.Fatal("not the same", err)
	}
}

func TestStreamsEndOnlyWithAnEnd(t *testing.T) {
	whole := func(end func(*StreamWriter) error) []byte {
		var b bytes.Buffer
		w := NewStreamWriter(&b)
		for _, m := range examples()[13:17] {
			if err := w.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := end(w); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	read := func(p []byte) (n int, err error) {
		r := NewStreamReader(bytes.NewReader(p))
		for {
			m, err := r.Next()
			if err != nil {
				return n, err
			}
			m.Release()
			n++
		}
	}
	good := whole((*StreamWriter).Done)
	if n, err := read(good); n != 4 || err != io.EOF {
		t.Fatal(n, err)
	}
	bad := whole(func(w *StreamWriter) error { return w.Fail(holdfast.Errorf(holdfast.Corrupt, "", "rot")) })
	if _, err := read(bad); !errors.Is(err, holdfast.Corrupt) {
		t.Fatal(err)
	}
	for cut := range good {
		if _, err := read(good[:cut]); !errors.Is(err, holdfast.Offline) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}

func TestMessagesOutOfBoundsAreRefusedOnBothSides(t *testing.T) {
	ref := func(off, n int64, d byte) holdfast.Ref {
		r := holdfast.Ref{Extent: holdfast.Extent{Off: off, Len: n}}
		if d != 0 {
			r.Digest = digest(d)
		}
		return r
	}
	big := holdfast.Group{Chunks: make([]holdfast.Piece, 3000), Payload: make([]byte, 3000)}
	for name, m := range map[string]Message{
		"no body":             {Type: TypePut},
		"wrong body":          {Type: TypePut, Body: Ask{}},
		"unknown type":        {Type: 99, Body: Begin{}},
		"link frame":          {Type: TypePing},
		"empty ask":           {Type: TypeAsk, Body: Ask{}},
		"long ask":            {Type: TypeAsk, Body: Ask{0, make([]holdfast.Digest, MaxAsk+1)}},
		"too many chunks":     {Type: TypePut, Body: &big},
		"overlapping refs":    {Type: TypePlace, Body: Place{[]holdfast.Ref{ref(0, 10, 1), ref(9, 10, 1)}}},
		"refs backwards":      {Type: TypePlace, Body: Place{[]holdfast.Ref{ref(20, 10, 1), ref(0, 10, 1)}}},
		"ref beyond any disk": {Type: TypePlace, Body: Place{[]holdfast.Ref{ref(holdfast.MaxDiskSize, 1, 0)}}},
		"overflowing ref":     {Type: TypePlace, Body: Place{[]holdfast.Ref{ref(1<<62, 1<<62, 0)}}},
		"ref beyond a chunk":  {Type: TypePlace, Body: Place{[]holdfast.Ref{ref(0, holdfast.MaxChunk+1, 1)}}},
		"touching extents":    {Type: TypeWant, Body: Want{holdfast.Extents{{Off: 0, Len: 1}, {Off: 1, Len: 1}}}},
		"place beyond group": {Type: TypeParcel, Body: &holdfast.Parcel{Group: holdfast.Group{Chunks: []holdfast.Piece{{Len: 1}}, Payload: []byte{1}},
			Places: []holdfast.Place{{At: 1, Len: 1}}}},
		"manifest without id": {Type: TypeStart, Body: holdfast.Manifest{}},
		"short key":           {Type: TypeSetOpened, Body: SetOpened{exampleManifest(), []byte{1}}},
		"long token":          {Type: TypeTracking, Body: Tracking{Tokens: map[holdfast.DiskID]string{{}: strings.Repeat("x", 3000)}}},
	} {
		if _, err := encode(&m); !errors.Is(err, holdfast.Invalid) && !errors.Is(err, holdfast.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bomb := []byte(`{"disks":[` + strings.Repeat("{},", 1<<20) + `{}]}`)
	if _, err := parseJSON(TypeStart, bomb); !errors.Is(err, holdfast.Invalid) {
		t.Error(err)
	}
}

func TestTextThatIsNotUTF8StillTravels(t *testing.T) {
	m := exampleManifest()
	m.VM.Name = "broken \xff name"
	if _, err := encode(&Message{Type: TypeStart, Body: m}); err != nil {
		t.Error(err)
	}
	long := Failure{holdfast.Internal, strings.Repeat("\x01\xff€", 5000), strings.Repeat("\x02", 5000)}
	if _, err := encode(&Message{Type: TypeFail, Body: long}); err != nil {
		t.Error(err)
	}
}

func FuzzFrame(f *testing.F) {
	for _, b := range goldenFrames(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		fr, h, err := readFrame(bufio.NewReader(bytes.NewReader(in)), MaxFrame)
		if err != nil {
			return
		}
		again := newFrame(int(h.length))
		copy(again.payload(), fr.payload())
		again.measure()
		again.seal(h)
		if !bytes.Equal(again.b, in[:len(fr.b)]) {
			t.Fatal("a frame does not encode as it was read")
		}
	})
}

func FuzzMessages(f *testing.F) {
	for _, b := range goldenFrames(f) {
		h := parseHeader(b)
		f.Add(byte(h.typ), h.channel, b[headerLen:])
	}
	f.Fuzz(func(t *testing.T, typ byte, channel uint16, p []byte) {
		switch Type(typ) {
		case TypeHello:
			if h, err := parseHello(p); err == nil && !bytes.Equal(h.append(nil), p) {
				t.Fatal("a Hello does not encode as it was read")
			}
			return
		case TypeWelcome:
			if w, err := parseWelcome(p); err == nil && !bytes.Equal(w.append(nil), p) {
				t.Fatal("a Welcome does not encode as it was read")
			}
			return
		}
		if most, known := Type(typ).limit(); !known || len(p) > most {
			return
		}
		m, err := parse(Type(typ), channel, p, nil)
		if err != nil {
			return
		}
		fs, err := encode(&m)
		if err != nil {
			t.Fatalf("%v was read but cannot be encoded: %v", m.Type, err)
		}
		var again []byte
		for _, fr := range fs {
			again = append(again, fr.payload()...)
		}
		if !bytes.Equal(again, p) {
			t.Fatalf("%v does not encode as it was read", m.Type)
		}
	})
}
