//go:build linux

package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// What a day changes on an aged disk.
const (
	agedBytes = 4 << 30 // of the disk: the beginning of image a
	agedDay   = 50      // a fiftieth of the disk changes a day
	agedHot   = 20      // three in five writes go to one twentieth of the disk
	agedKeep  = 30      // points; older ones are deleted
	agedWeek  = 7       // days from one collection to the next
)

// An aging is a disk that is backed up by change tracking day after day while old points go.
type aging struct {
	h      *holdfast
	rng    *rand.Rand
	model  *os.File // what the disk holds
	source *os.File // where new content comes from
	kept   []string
}

// aged prints how fast the newest point of a disk is restored after so many increments, compared to its first one.
func aged(h *holdfast, dir, images string, increments int) error {
	place := filepath.Join(dir, "aged")
	if err := os.RemoveAll(place); err != nil {
		return err
	}
	if err := os.MkdirAll(place, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(place)
	base := filepath.Join(place, "old.raw")
	if out, err := exec.Command("dd", "if="+filepath.Join(images, "a.raw"), "of="+base, "bs=4M", fmt.Sprintf("count=%d", agedBytes>>22), "conv=sparse", "status=none").CombinedOutput(); err != nil {
		return fmt.Errorf("dd: %w\n%s", err, out)
	}
	if err := os.Truncate(base, agedBytes); err != nil {
		return err
	}
	repo := filepath.Join(dir, "repo-aged")
	_ = os.RemoveAll(repo)
	if err := os.MkdirAll(repo, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(repo)
	defer h.stop()
	if err := h.start(repo); err != nil {
		return err
	}
	if err := h.put("old", base); err != nil {
		return err
	}
	g := &aging{h: h, rng: rand.New(rand.NewPCG(1, 2))}
	var err error
	if g.model, err = os.OpenFile(base, os.O_RDWR, 0); err != nil {
		return err
	}
	defer g.model.Close()
	if g.source, err = os.Open(filepath.Join(images, "b.raw")); err != nil {
		return err
	}
	defer g.source.Close()
	return g.live(increments)
}

func (g *aging) live(increments int) error {
	if err := g.backup("--full"); err != nil {
		return err
	}
	first, err := g.speed()
	if err != nil {
		return err
	}
	for day := range increments {
		if err := g.day(); err != nil {
			return fmt.Errorf("day %d: %w", day+1, err)
		}
		if err := g.backup(); err != nil {
			return fmt.Errorf("day %d: %w", day+1, err)
		}
		for len(g.kept) > agedKeep {
			if _, err := g.h.cli("set", "delete", g.kept[0], "--yes"); err != nil {
				return err
			}
			g.kept = g.kept[1:]
		}
		if day%agedWeek == agedWeek-1 {
			if _, err := g.h.cli("pool", "gc", "main"); err != nil {
				return err
			}
		}
	}
	last, err := g.speed()
	if err != nil {
		return err
	}
	fmt.Printf("A disk of %d GiB restored at %.0f MiB/s; after %d increments at %.0f MiB/s: %.2f of it.\n", agedBytes>>30, first, increments, last, last/first)
	return nil
}

func (g *aging) backup(more ...string) error {
	if _, err := g.h.cli(g.h.backupArgs("old", more...)...); err != nil {
		return err
	}
	id, err := g.h.newest("old")
	g.kept = append(g.kept, id)
	return err
}

// speed is how fast the newest point is restored, MiB/s, the median of three; each is compared with what the disk holds.
func (g *aging) speed() (float64, error) {
	want, err := hashFile(g.model.Name())
	if err != nil {
		return 0, err
	}
	out := g.h.path("old.restored")
	var rates []float64
	for range 3 {
		dropCaches()
		start := time.Now()
		if _, err := g.h.cli("restore", "export", g.kept[len(g.kept)-1], "--disk", "0", "--format", "raw", "--output", out); err != nil {
			return 0, err
		}
		rates = append(rates, agedBytes/time.Since(start).Seconds()/(1<<20))
		got, err := hashFile(out)
		_ = os.Remove(out)
		if err != nil || got != want {
			return 0, fmt.Errorf("the restored disk differs (%v)", err)
		}
	}
	slices.Sort(rates)
	return rates[1], nil
}

// day lets a foreign program write what a day changes, and the model with it.
func (g *aging) day() error {
	sock, parts := g.h.path("old.sock"), g.h.path("parts")
	_ = os.Remove(sock)
	nbd := exec.Command(filepath.Join(g.h.bin, "holdfast-agent"), "lab", "nbd", g.h.path("lab"), "old", "0", "--socket", sock)
	if err := nbd.Start(); err != nil {
		return err
	}
	defer func() { _ = nbd.Process.Signal(os.Interrupt); _ = nbd.Wait() }()
	for range 1000 {
		if _, err := os.Stat(sock); err == nil {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	if err := os.MkdirAll(parts, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(parts)
	qemu := exec.Command("qemu-io", "-f", "raw", "nbd+unix:///?socket="+sock)
	in, err := qemu.StdinPipe()
	if err != nil {
		return err
	}
	if err := qemu.Start(); err != nil {
		return err
	}
	err = g.writes(in, parts)
	if _, e := fmt.Fprintln(in, "flush\nquit"); err == nil {
		err = e
	}
	_ = in.Close()
	if e := qemu.Wait(); err == nil {
		err = e
	}
	return err
}

func (g *aging) writes(in io.Writer, parts string) error {
	st, err := g.source.Stat()
	if err != nil {
		return err
	}
	for written, n := 0, 0; written < agedBytes/agedDay; n++ {
		size := 4096 << g.rng.IntN(7) // 4 to 256 KiB
		area := int64(agedBytes)
		if g.rng.IntN(5) < 3 {
			area /= agedHot
		}
		off := g.rng.Int64N((area-int64(size))/4096) * 4096
		p := make([]byte, size)
		if _, err := g.source.ReadAt(p, g.rng.Int64N((st.Size()-int64(size))/4096)*4096); err != nil {
			return err
		}
		if _, err := g.model.WriteAt(p, off); err != nil {
			return err
		}
		name := filepath.Join(parts, fmt.Sprint(n))
		if err := os.WriteFile(name, p, 0o600); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(in, "write -q -s %s %d %d\n", name, off, size); err != nil {
			return err
		}
		written += size
	}
	return nil
}
