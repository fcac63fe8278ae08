//go:build linux

// Command run times Holdfast and its peers on the same disks, one after the other, and prints one table of ratios.
//
//	go run ./bench/run [-n RUNS] [-dir DIR] [-images DIR] [-tools holdfast,restic,borg,zstd,cp] [-profile DIR] [-warm]
//	go run ./bench/run -tools holdfast,holdfast:variable,holdfast:fixed-64K,holdfast:fixed-512K    the chunkings against each other
//	go run ./bench/run -tools holdfast,holdfast+fast,kopia,restic-new                              a mode of compression; newer peers
//	go run ./bench/run -brief -tools restic-s3,holdfast-s3,holdfast-s3-2+1                         buckets on one S3 server, requests counted by it
//	go run ./bench/run -brief -tools cp,holdfast-standard,holdfast-plain,holdfast-4+2              kinds of pools on folders, not encrypted
//
// Every tool backs up disk A, A again (every byte read again), A a day later, and a sibling B, then restores A of the second day,
// whose SHA-256 must be the source's. Holdfast runs whole and encrypts: daemon, agent and CLI as separate programs over TLS. Some steps are
// Holdfast's own: the second day by change tracking, a backup where nothing changed, recompression, a scrub. Page caches are dropped before
// each step where the system allows it and -warm does not forbid it.
// Needs root for the images (loop mount). See bench/README.md for how to read the numbers.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// steps are the columns of the table, in the order in which they are run.
var steps = []string{"full", "again", "day2", "sibling", "restore", "tracked", "nothing", "scrub", "recompress"}

// A cost is what one step took.
type cost struct {
	Wall, CPU float64 // seconds; CPU of every process of the tool
	RSS       int64   // bytes: largest sum of the tool's processes' peaks
	Grown     int64   // bytes: growth of the repository
	Requests  int64   // to the S3 server, by its log; 0 without one
	OK        bool
}

// A tool backs up and restores raw disk images.
type tool interface {
	// start makes an empty repository below dir.
	start(dir string) error
	// backup stores an image under a tag; again says that it is the tag's second reading.
	backup(step, image string) (cost, error)
	restore(image, out string) (cost, error)
	stop()
	// gateway is the S3 server that the tool uses, nil if none.
	gateway() *gateway
}

func main() {
	runs := flag.Int("n", 3, "runs of each tool; the table shows medians")
	dir := flag.String("dir", "bench/out", "folder for images and repositories, on the disk to be measured")
	images := flag.String("images", "", "folder with vmA.raw, vmA-day2.raw and vmB.raw to use instead of images made here")
	flag.BoolVar(&warm, "warm", false, "leave page caches alone")
	profile := flag.String("profile", "", "folder for CPU and heap profiles of Holdfast's programs")
	flag.BoolVar(&brief, "brief", false, "leave out recompression and scrub, which take longer than everything else")
	names := flag.String("tools", "cp,zstd,borg,restic,holdfast", "which tools, in which order")
	flag.Parse()
	if *profile != "" {
		_ = os.Setenv("HOLDFAST_PROFILE", *profile) // cannot fail for such a name
	}
	if err := bench(*runs, *dir, *images, strings.Split(*names, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var background = context.Background()

// warm says that page caches stay as they are; brief, that recompression and scrub are left out.
var warm, brief bool

func bench(runs int, dir, from string, names []string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	images := filepath.Join(dir, "images")
	if from != "" {
		if images, err = links(dir, from); err != nil {
			return err
		}
	} else if out, err := exec.Command("bash", "bench/images.sh", images).CombinedOutput(); err != nil {
		return fmt.Errorf("make the images: %w\n%s", err, out)
	}
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", "./cmd/...").CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	want, err := hashFile(filepath.Join(images, "a2.raw"))
	if err != nil {
		return err
	}
	results := map[string]map[string][]cost{}
	for run := range runs {
		for _, name := range names {
			t, err := newTool(name, dir)
			if err != nil {
				fmt.Printf("%s is left out: %v\n", name, err)
				continue
			}
			fmt.Fprintf(os.Stderr, "run %d of %d: %s\n", run+1, runs, name)
			r, err := series(t, filepath.Join(dir, "repo-"+strings.ReplaceAll(name, ":", "-")), images, want)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if results[name] == nil {
				results[name] = map[string][]cost{}
			}
			for step, c := range r {
				results[name][step] = append(results[name][step], c)
			}
		}
	}
	report(os.Stdout, names, results, images)
	return nil
}

// links gives images of another workload the names used here.
func links(dir, from string) (string, error) {
	to := filepath.Join(dir, "linked")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return "", err
	}
	for name, image := range map[string]string{"a.raw": "vmA.raw", "a2.raw": "vmA-day2.raw", "b.raw": "vmB.raw"} {
		_ = os.Remove(filepath.Join(to, name))
		src := filepath.Join(from, image)
		if err := os.Link(src, filepath.Join(to, name)); err != nil { // another file system
			if err := os.Symlink(src, filepath.Join(to, name)); err != nil {
				return "", err
			}
		}
	}
	return to, nil
}

// series runs all steps of one tool over a fresh repository.
func series(t tool, repo, images, want string) (map[string]cost, error) {
	_ = os.RemoveAll(repo)
	if err := os.MkdirAll(repo, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(repo)
	defer t.stop()
	if err := t.start(repo); err != nil {
		return nil, err
	}
	r := map[string]cost{}
	for _, s := range []struct{ step, image string }{{"full", "a"}, {"again", "a"}, {"day2", "a2"}, {"sibling", "b"}} {
		before := folderBytes(repo)
		c, err := t.backup(s.step, filepath.Join(images, s.image+".raw"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.step, err)
		}
		c.Grown, c.Requests, c.OK = folderBytes(repo)-before, requests(t), true
		r[s.step] = c
	}
	out := repo + ".out"
	defer os.RemoveAll(out)
	_ = os.RemoveAll(out)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	c, err := t.restore(filepath.Join(images, "a2.raw"), out)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	got, err := hashLargest(out)
	if err != nil {
		return nil, err
	}
	c.Requests = requests(t)
	if c.OK = got == want; !c.OK {
		return nil, fmt.Errorf("the restored disk differs from the source")
	}
	r["restore"] = c
	if h, ok := t.(*holdfast); ok {
		_ = os.RemoveAll(out)
		before := folderBytes(repo)
		if c, err = h.tracked(images); err != nil {
			return nil, fmt.Errorf("tracked: %w", err)
		}
		c.Grown, c.Requests, c.OK = folderBytes(repo)-before, requests(t), true
		r["tracked"] = c
		if err := h.own(repo, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func requests(t tool) int64 {
	if g := t.gateway(); g != nil {
		return g.requests()
	}
	return 0
}

func hashFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func hashLargest(dir string) (string, error) {
	var name string
	var size int64
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() && info.Size() > size {
			name, size = p, info.Size()
		}
		return err
	})
	if err != nil || name == "" {
		return "", fmt.Errorf("nothing was restored: %v", err)
	}
	return hashFile(name)
}

// folderBytes returns the blocks that a folder's files take.
func folderBytes(dir string) (n int64) {
	_ = filepath.Walk(dir, func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.IsDir() && info.Name() == "~reserve" {
			return filepath.SkipDir // room kept free for a full disk: not part of what is stored
		}
		if err == nil && info.Mode().IsRegular() {
			n += blocks(info)
		}
		return nil
	})
	return n
}

func median[T float64 | int64](cs []cost, f func(cost) T) T {
	v := make([]T, len(cs))
	for i, c := range cs {
		v[i] = f(c)
	}
	slices.Sort(v)
	return v[len(v)/2]
}
