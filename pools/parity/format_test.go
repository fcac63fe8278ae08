package parity

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/fsys"
	"github.com/holdfast-backup/holdfast/pools/blob"
	"github.com/holdfast-backup/holdfast/pools/blob/blobtest"
)

var update = flag.Bool("update", false, "write the golden files anew")

var goldenGeometry = geometry{id: holdfast.ID{0: 1, 15: 16}, k: 2, m: 1, block: 64}

// The golden files are all three shards of a small object and a member's label: a reader of this version must read them for ever.
func TestFormatStaysAsItIs(t *testing.T) {
	media := memory(3)
	s, err := newStripe(goldenGeometry, stores(t, media), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const name, size = "sets/golden", 300
	if err := blob.WriteAll(background, s, name, blobtest.Content(name, size)); err != nil {
		t.Fatal(err)
	}
	golden := map[string][]byte{"member.bin": memberLabel{goldenGeometry, 2}.encode()}
	for i := range 3 {
		b, err := fsys.ReadFile(media[goldenGeometry.position(name, i)], name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		golden["shard-"+string(rune('0'+i))+".bin"] = b
	}
	for file, got := range golden {
		p := filepath.Join("testdata", file)
		if *update {
			if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(p, got, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(p)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs from what is written now (%v)", file, err)
		}
	}
}

// The document says which code it is; here it is computed as written there, without the library.
func TestParityIsTheCodeOfTheDocument(t *testing.T) {
	mul := func(a, b byte) (p byte) {
		for ; b > 0; b >>= 1 {
			if b&1 == 1 {
				p ^= a
			}
			carry := a&0x80 != 0
			if a <<= 1; carry {
				a ^= 0x1d
			}
		}
		return p
	}
	power := func(r byte, c int) byte {
		p := byte(1)
		for range c {
			p = mul(p, r)
		}
		return p
	}
	inverse := func(a byte) byte { return power(a, 254) }
	for _, shape := range [][2]int{{2, 1}, {4, 2}, {10, 4}} {
		k, n := shape[0], shape[0]+shape[1]
		// The data are the values of a polynomial at 0..k-1 (that is what the upper square's inverse does), parity its values at k..n-1.
		s, err := newStripe(geometry{id: holdfast.ID{1}, k: k, m: n - k, block: 64}, make([]blob.Store, n), Options{})
		if err != nil {
			t.Fatal(err)
		}
		shards := make([][]byte, n)
		for i := range shards {
			shards[i] = make([]byte, 64)
			if i < k {
				copy(shards[i], blobtest.Content(string(rune('a'+i)), 64))
			}
		}
		if err := s.code.Encode(shards); err != nil {
			t.Fatal(err)
		}
		for x := k; x < n; x++ {
			for at := range 64 {
				var want byte
				for i := range k { // Lagrange
					term := shards[i][at]
					for j := range k {
						if j != i {
							term = mul(term, mul(byte(x)^byte(j), inverse(byte(i)^byte(j))))
						}
					}
					want ^= term
				}
				if shards[x][at] != want {
					t.Fatalf("%v: shard %d, byte %d is %02x, not %02x", shape, x, at, shards[x][at], want)
				}
			}
		}
		s.cancel()
	}
}

func FuzzLabel(f *testing.F) {
	f.Add(label{geometry: goldenGeometry, index: 2, length: 300, sum: 7, name: "sets/golden"}.encode())
	f.Add(make([]byte, labelLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLabel(b)
		if err != nil {
			return
		}
		if !bytes.Equal(l.encode(), b) {
			t.Error("decoded and encoded again, it is another")
		}
		if lay := l.layout(l.length); lay.shardSize() < labelLen || lay.at(lay.stripes()) < 0 {
			t.Errorf("layout %+v", lay)
		}
	})
}

func FuzzMemberLabel(f *testing.F) {
	f.Add(memberLabel{goldenGeometry, 1}.encode())
	f.Add(make([]byte, memberLen))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := decodeMember(b); err == nil && !bytes.Equal(l.encode(), b) {
			t.Error("decoded and encoded again, it is another")
		}
	})
}

// Every byte of an object lies in exactly one place of its shards, and places are in order.
func FuzzLayout(f *testing.F) {
	f.Add(uint8(4), uint16(64), uint32(100_000))
	f.Add(uint8(2), uint16(1), uint32(0))
	f.Fuzz(func(t *testing.T, k uint8, grains uint16, length uint32) {
		g := geometry{k: int(k%30) + 2, m: 1, block: (int(grains)%64 + 1) * grain}
		l := g.layout(int64(length % 1_000_000))
		want, stripe, block, in := int64(0), int64(0), 0, 0
		for stripe < l.stripes() && want < l.length {
			if s, b, i := l.find(want); s != stripe || b != block || i != in {
				t.Fatalf("%+v: byte %d is at %d/%d/%d, not %d/%d/%d", l, want, s, b, i, stripe, block, in)
			}
			step := min(17, l.blockLen(stripe)-in)
			want += int64(step)
			if in += step; in == l.blockLen(stripe) {
				in, block = 0, block+1
			}
			if block == l.k {
				stripe, block = stripe+1, 0
			}
		}
		if want < l.length {
			t.Fatalf("%+v: room for %d bytes only", l, want)
		}
		if waste := l.shardSize()*int64(g.k) - l.length - l.stripes()*int64(g.k*sumLen) - int64(g.k*labelLen); waste < 0 || waste >= int64(g.k*grain) {
			t.Fatalf("%+v: %d bytes of padding", l, waste)
		}
	})
}

func BenchmarkStripe(b *testing.B) {
	for _, c := range []struct {
		name string
		lost int
	}{{"write 4+2", 0}, {"read 4+2", 0}, {"read 4+2 with two lost", 2}} {
		b.Run(c.name, func(b *testing.B) {
			media := make([]fsys.FS, 6)
			for i := range media {
				f, err := fsys.NewOS(b.TempDir())
				if err != nil {
					b.Fatal(err)
				}
				media[i] = f
			}
			s := create(benchT{b}, media, 4, 2, Options{})
			data := blobtest.Content("x", 32<<20)
			b.SetBytes(int64(len(data)))
			if c.name != "write 4+2" {
				if err := blob.WriteAll(background, s, "x", data); err != nil {
					b.Fatal(err)
				}
			}
			for i := range c.lost {
				s.slots[s.position("x", i)].Store(&member{name: "lost"}) // data shards
			}
			b.ResetTimer()
			for b.Loop() {
				var err error
				if c.name == "write 4+2" {
					err = writeUnsynced(s, data)
				} else {
					_, err = blob.ReadAll(background, s, "x", 1<<30)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("encode 4+2", func(b *testing.B) {
		s := create(benchT{b}, memory(6), 4, 2, Options{})
		o := &object{s: s, w: s.newWriter("x"), buf: make([]byte, 6*DefaultBlock)} // shards that go nowhere
		data := blobtest.Content("x", 4<<20)
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if _, err := o.Write(data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// writeUnsynced writes an object without Commit, so that the disk's sync is not what is measured.
func writeUnsynced(s *Stripe, data []byte) error {
	o, err := s.Create(background, "w")
	if err != nil {
		return err
	}
	defer o.Abort()
	_, err = o.Write(data)
	return err
}

type benchT struct{ *testing.B }
