package chunk

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/holdfast-backup/holdfast"
)

var levels = []Level{LevelOff, LevelFast, LevelDefault, LevelBetter}

// group builds a group out of plain, cut into chunks of n bytes.
func group(e *Encoder, h *holdfast.Hasher, plain []byte, n int) holdfast.Group {
	b := NewBuilder()
	for at := 0; at < len(plain); at += n {
		p := plain[at:min(at+n, len(plain))]
		b.Add(h.Sum(p), p)
	}
	return b.Encode(e, make([]byte, 0, MaxEncoded))
}

// Goal: every level gives back what went in, keeps a group's bounds and never grows it. Method: contents of each sort and size.
func TestGroupsComeBackWhole(t *testing.T) {
	h := holdfast.Domain{Key: [32]byte{1}}.Hasher()
	dec := NewDecoder()
	buf := make([]byte, holdfast.MaxGroupPlain)
	for _, level := range levels {
		enc := NewEncoder(level)
		for name, plain := range map[string][]byte{
			"one byte": {7}, "zeros": make([]byte, holdfast.MaxGroupPlain), "random": random(1, holdfast.MaxGroupPlain),
			"mixed": disk(2, holdfast.MaxGroupPlain), "short": disk(3, 5000), "odd": disk(4, 512*777+3),
		} {
			g := group(enc, h, plain, 60000)
			if err := g.Check(); err != nil {
				t.Fatalf("%v %s: %v", level, name, err)
			}
			if level == LevelOff && g.Codec != holdfast.Plain {
				t.Errorf("%v %s: encoded as %v", level, name, g.Codec)
			}
			if g.Codec != holdfast.Plain && len(g.Payload) > len(plain)*15/16 {
				t.Errorf("%v %s: %d of %d bytes are not worth %v", level, name, len(g.Payload), len(plain), g.Codec)
			}
			if name == "zeros" && level > LevelOff && len(g.Payload) > len(plain)/16 {
				t.Errorf("%v: zeros take %d bytes", level, len(g.Payload))
			}
			got, err := dec.Open(h, &g, buf, nil)
			if err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%v %s: %d bytes come back, %v", level, name, len(got), err)
			}
		}
	}
}

func TestIncompressibleGroupsStayPlain(t *testing.T) {
	for _, level := range levels {
		if codec, _ := NewEncoder(level).Encode(nil, random(1, 1<<20)); codec != holdfast.Plain {
			t.Errorf("%v: random bytes are stored as %v", level, codec)
		}
	}
	// Random bytes that repeat are even, but compressible: the sample must not be the only judge of them.
	twice := bytes.Repeat(random(3, 2048), 512)
	if codec, p := NewEncoder(LevelDefault).Encode(nil, twice); codec != holdfast.Zstd {
		t.Errorf("repeated random bytes are stored as %v in %d bytes", codec, len(p))
	}
}

// Goal: what was damaged or made up is an error of kind Corrupt or Invalid, names the digest, and takes no more memory than declared.
func TestHostilePayloadsAreRefused(t *testing.T) {
	h := holdfast.Domain{}.Hasher()
	plain := disk(9, 200000)
	good := group(NewEncoder(LevelDefault), h, plain, 50000)
	enc, err := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	bomb := enc.EncodeAll(make([]byte, 64<<20), nil)
	cases := map[string]func(g *holdfast.Group){
		"zstd bomb":        func(g *holdfast.Group) { g.Payload = bomb },
		"s2 bomb":          func(g *holdfast.Group) { g.Codec, g.Payload = holdfast.S2, s2.Encode(nil, make([]byte, 32<<20)) },
		"s2 length only":   func(g *holdfast.Group) { g.Codec, g.Payload = holdfast.S2, []byte{0xff, 0xff, 0xff, 0xff, 0x0f} },
		"s2 of less":       func(g *holdfast.Group) { g.Codec, g.Payload = holdfast.S2, s2.Encode(nil, plain[:1000]) },
		"zstd of less":     func(g *holdfast.Group) { g.Payload = enc.EncodeAll(plain[:1000], nil) },
		"zstd of more":     func(g *holdfast.Group) { g.Payload = enc.EncodeAll(make([]byte, 200001), nil) },
		"cut short":        func(g *holdfast.Group) { g.Payload = g.Payload[:len(g.Payload)-1] },
		"other codec":      func(g *holdfast.Group) { g.Codec = holdfast.S2 },
		"not a codec":      func(g *holdfast.Group) { g.Codec = 9 },
		"no payload":       func(g *holdfast.Group) { g.Payload = nil },
		"no chunks":        func(g *holdfast.Group) { g.Chunks = nil },
		"huge chunk":       func(g *holdfast.Group) { g.Chunks[0].Len = 1 << 31 },
		"chunk too long":   func(g *holdfast.Group) { g.Chunks[0].Len++ },
		"other digest":     func(g *holdfast.Group) { g.Chunks[2].Digest[5] ^= 1 },
		"chunks exchanged": func(g *holdfast.Group) { g.Chunks[0], g.Chunks[1] = g.Chunks[1], g.Chunks[0] },
		"a flipped bit":    func(g *holdfast.Group) { g.Payload[len(g.Payload)/2] ^= 4 },
	}
	dec := NewDecoder()
	for name, spoil := range cases {
		g := holdfast.Group{Codec: good.Codec, Chunks: append([]holdfast.Piece(nil), good.Chunks...), Payload: bytes.Clone(good.Payload)}
		spoil(&g)
		got, err := dec.Open(h, &g, nil, nil)
		if k := holdfast.KindOf(err); err == nil || (k != holdfast.Corrupt && k != holdfast.Invalid) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	if got, err := dec.Open(h, &good, nil, nil); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("the decoder is spoilt by what it refused: %v", err)
	}
}

func TestOnlyUsedChunksAreChecked(t *testing.T) {
	h := holdfast.Domain{}.Hasher()
	g := group(NewEncoder(LevelFast), h, disk(1, 100000), 10000)
	g.Chunks[3].Digest[0] ^= 1
	if _, err := NewDecoder().Open(h, &g, nil, func(i int) bool { return i != 3 }); err != nil {
		t.Errorf("a chunk that is not used is checked: %v", err)
	}
	_, err := NewDecoder().Open(h, &g, nil, func(i int) bool { return i == 3 })
	if holdfast.KindOf(err) != holdfast.Corrupt || !bytes.Contains([]byte(err.Error()), []byte(g.Chunks[3].Digest.String())) {
		t.Errorf("a wrong digest gives %v", err)
	}
}

func TestBuilderKeepsTheBoundsOfGroups(t *testing.T) {
	b := NewBuilder()
	if !b.Fits(holdfast.MaxChunk) {
		t.Error("the largest chunk does not fit an empty group")
	}
	for range holdfast.MaxGroupChunks {
		if !b.Fits(1) {
			t.Fatal("full too early")
		}
		b.Add(holdfast.Digest{}, []byte{1})
	}
	if b.Fits(1) {
		t.Error("too many chunks fit")
	}
	b.Reset()
	b.Add(holdfast.Digest{}, make([]byte, holdfast.MaxGroupPlain-10))
	if b.Fits(11) || !b.Fits(10) {
		t.Error("the bound of the plaintext is wrong")
	}
	b.Reset()
	if g := b.Encode(NewEncoder(LevelFast), nil); len(g.Chunks) != 0 {
		t.Error("an empty builder has a group")
	}
}

func TestLevelsReadWhatTheyPrint(t *testing.T) {
	for _, l := range levels {
		if got, err := ParseLevel(l.String()); err != nil || got != l {
			t.Errorf("%v reads as %v, %v", l, got, err)
		}
	}
	if _, err := ParseLevel("zip"); holdfast.KindOf(err) != holdfast.Invalid {
		t.Errorf("zip: %v", err)
	}
}

// allocs is how often f allocates where nothing disturbs it: a collection that comes between empties pools, and the race detector does so at random.
func allocs(f func()) float64 {
	n := testing.AllocsPerRun(20, f)
	for range 20 {
		if n < 1 {
			break
		}
		n = min(n, testing.AllocsPerRun(20, f))
	}
	return n
}

// Goal: the hot path makes no garbage. Method: count allocations after warming up.
func TestEncodingAndDecodingDoNotAllocate(t *testing.T) {
	h := holdfast.Domain{}.Hasher()
	plain, buf, dst := disk(5, 1<<20), make([]byte, 1<<20), make([]byte, 0, MaxEncoded)
	dec := NewDecoder()
	for _, level := range levels {
		enc := NewEncoder(level)
		g := group(enc, h, plain, 65536)
		if n := allocs(func() { enc.Encode(dst, plain) }); n >= 1 {
			t.Errorf("%v: Encode allocates %v times", level, n)
		}
		if n := allocs(func() { _, _ = dec.Open(h, &g, buf, nil) }); n >= 1 {
			t.Errorf("%v: Open allocates %v times", level, n)
		}
	}
}

// FuzzDecode: no payload crashes a decoder, takes unbounded memory or passes for what it is not; and what an encoder makes of
// the same bytes comes back.
func FuzzDecode(f *testing.F) {
	h := holdfast.Domain{}.Hasher()
	for _, level := range levels {
		g := group(NewEncoder(level), h, disk(uint64(level), 9000), 4096)
		f.Add(uint8(g.Codec), uint32(9000), g.Payload)
	}
	dec := NewDecoder()
	encs := []*Encoder{NewEncoder(LevelOff), NewEncoder(LevelFast), NewEncoder(LevelDefault), NewEncoder(LevelBetter)}
	f.Fuzz(func(t *testing.T, codec uint8, n uint32, payload []byte) {
		g := holdfast.Group{Codec: holdfast.Codec(codec), Chunks: []holdfast.Piece{{Len: n}}, Payload: payload}
		plain, err := dec.Decode(&g, nil)
		if err == nil && (len(plain) != int(n) || n > holdfast.MaxChunk) {
			t.Fatalf("%d bytes decoded where %d were declared", len(plain), n)
		}
		if k := holdfast.KindOf(err); err != nil && k != holdfast.Corrupt && k != holdfast.Invalid {
			t.Fatalf("refused as %v: %v", k, err)
		}
		if len(payload) == 0 || len(payload) > holdfast.MaxGroupPlain {
			return
		}
		for _, e := range encs {
			g := group(e, h, payload, 4096)
			if got, err := dec.Open(h, &g, nil, nil); err != nil || !bytes.Equal(got, payload) {
				t.Fatalf("level %v: %d of %d bytes come back, %v", e.level, len(got), len(payload), err)
			}
		}
	})
}

// The order of chunks in a group and the bytes of a disk are arbitrary; TestRandomGroups covers the combinations.
func TestRandomGroups(t *testing.T) {
	h := holdfast.Domain{Key: [32]byte{3}}.Hasher()
	dec := NewDecoder()
	for seed := uint64(1); seed <= 60; seed++ {
		rnd := rand.New(rand.NewPCG(seed, 6))
		plain := disk(seed, 1+rnd.IntN(300000))
		g := group(NewEncoder(levels[rnd.IntN(4)]), h, plain, 1+max(len(plain)/1000, rnd.IntN(len(plain))))
		if got, err := dec.Open(h, &g, make([]byte, rnd.IntN(1<<20)), nil); err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
