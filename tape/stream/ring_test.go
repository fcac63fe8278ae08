package stream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/tape/drive"
	"github.com/holdfast-backup/holdfast/tape/emu"
	"github.com/holdfast-backup/holdfast/tape/scsi"
	"github.com/holdfast-backup/holdfast/tape/stream"
)

// jumpy reads in pieces of random length.
type jumpy struct {
	r   io.Reader
	rng *rand.Rand
}

func (j jumpy) Read(p []byte) (int, error) { return j.r.Read(p[:1+j.rng.IntN(len(p))]) }

// TestWhatGoesInComesOut, whatever the pieces, also around the end of the ring.
func TestWhatGoesInComesOut(t *testing.T) {
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		want := make([]byte, rng.IntN(5<<20))
		for i := range want {
			want[i] = byte(rng.Uint32())
		}
		var got []byte
		_, err := stream.Pump(context.Background(), 0, jumpy{bytes.NewReader(want), rng}, func(r io.Reader) (err error) {
			got, err = io.ReadAll(jumpy{r, rand.New(rand.NewPCG(seed, 2))})
			return err
		})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("seed %d: %d bytes of %d, %v", seed, len(got), len(want), err)
		}
	}
}

// TestErrorsCrossTheRing: the source's to the reader, the reader's to the source, and a cancelled context to both.
func TestErrorsCrossTheRing(t *testing.T) {
	bad := errors.New("bad source")
	_, err := stream.Pump(context.Background(), 0, io.MultiReader(bytes.NewReader(make([]byte, 100)), errReader{bad}), func(r io.Reader) error {
		p, err := io.ReadAll(r)
		if len(p) != 100 {
			t.Errorf("%d bytes came before the error", len(p))
		}
		return err
	})
	if !errors.Is(err, bad) {
		t.Errorf("%v", err)
	}
	full := errors.New("tape full")
	if _, err := stream.Pump(context.Background(), 0, endless{}, func(io.Reader) error { return full }); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, err = stream.Pump(ctx, 0, endless{}, func(r io.Reader) error {
		cancel()
		_, err := io.Copy(io.Discard, r)
		return err
	})
	if holdfast.KindOf(err) != holdfast.Cancelled {
		t.Errorf("%v", err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// paced is a source of a speed, in the bubble's time.
type paced struct{ left, rate int64 }

func (s *paced) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), s.left, 64<<10)
	s.left -= n
	after, _ := clock.System.After(time.Duration(n * int64(time.Second) / s.rate))
	<-after
	return int(n), nil
}

// TestADriveStopsOncePerRingAndNotMore: a source at a quarter of the drive's speed stops it at most once for each three quarters of the ring and once at the end, a source
// that is faster never, and then the drive's speed is reached.
func TestADriveStopsOncePerRingAndNotMore(t *testing.T) {
	const size, total = 8 << 20, 64 << 20
	run := func(t *testing.T, rate int64) (stops, underruns int, took time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			lib := emu.New(emu.Options{Drives: 1, Slots: 1, Clock: clock.System, Rate: 400e6, Buffer: 1 << 20})
			lib.Add(0, emu.Media{Barcode: "HF0001L8"})
			ctx := context.Background()
			robot := lib.Connect("a", emu.Changer)
			for range 3 {
				_, _ = robot.Exec(ctx, scsi.Command{CDB: scsi.MoveMedium(0, emu.AddrSlot, emu.AddrDrive)}) // the first meets an attention
			}
			d, err := drive.Open(ctx, lib.Connect("a", emu.Drive(0)), drive.Options{})
			if err == nil {
				err = d.Ready(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
			start, buf := time.Now(), make([]byte, 256<<10)
			do := func(r io.Reader) error {
				for {
					n, err := io.ReadFull(r, buf)
					if n > 0 {
						if e := d.Write(ctx, buf[:n]); e != nil {
							return e
						}
					}
					if err != nil {
						return d.Flush(ctx, 1)
					}
				}
			}
			s, err := stream.Pump(ctx, size, &paced{total, rate}, do)
			if err != nil {
				t.Fatal(err)
			}
			underruns = s.Underruns
			stops, took = lib.Count(0).Stops, time.Since(start)
		})
		return stops, underruns, took
	}
	slow, underruns, _ := run(t, 100e6)
	if most := total/(size/4*3) + 1; slow > most || underruns > most || slow == 0 {
		t.Errorf("a slow source stops the drive %d times, the ring ran empty %d times; at most %d", slow, underruns, most)
	}
	fast, underruns, took := run(t, 2000e6)
	if fast != 0 || underruns != 0 {
		t.Errorf("a fast source stops the drive %d times, and the ring ran empty %d times", fast, underruns)
	}
	if ideal := time.Duration(total * int64(time.Second) / 400e6); float64(ideal) < 0.95*float64(took-time.Duration(size/4*3*int64(time.Second)/2000e6)) {
		t.Errorf("64 MiB at 400 MB/s took %v, %v would be ideal", took, ideal)
	}
}

// TestTooSlowIsSaidByGeneration.
func TestTooSlowIsSaidByGeneration(t *testing.T) {
	for _, c := range []struct {
		gen  int
		rate int64
		want bool
	}{{9, 170e6, true}, {9, 180e6, false}, {8, 111e6, true}, {7, 101e6, false}, {10, 1, false}} {
		if got, _ := stream.TooSlow(c.gen, c.rate); got != c.want {
			t.Errorf("LTO-%d at %d: %v", c.gen, c.rate, got)
		}
	}
}
