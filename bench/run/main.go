//go:build linux

// Command run times Holdfast and its peers on the same disks, one after the other, and prints one table of ratios.
//
//	go run ./bench/run [-n RUNS] [-budget TIME] [-dir DIR] [-images DIR] [-tools holdfast,restic,borg,zstd,cp] [-profile DIR] [-warm] [-brief]
//	go run ./bench/run -goals -others [-images DIR]                                                only what the table of goals needs, all of it
//	go run ./bench/run -tools holdfast,holdfast:variable,holdfast:fixed-64K,holdfast:fixed-512K    the chunkings against each other
//	go run ./bench/run -tools holdfast,holdfast+fast,kopia,restic-new                              a mode of compression; newer peers
//	go run ./bench/run -brief -tools restic-s3,holdfast-s3,holdfast-s3-2+1                         buckets on one S3 server, requests counted by it
//	go run ./bench/run -brief -tools cp,holdfast-standard,holdfast-plain,holdfast-4+2              kinds of pools on folders, not encrypted
//
// Every tool backs up disk A, A again (every byte read again), A a day later, and a sibling B, then restores A of the second day,
// whose SHA-256 must be the source's. Holdfast runs whole and encrypts: daemon, agent and CLI as separate programs over TLS. Some steps are
// Holdfast's own: the second and third day by change tracking, a backup where nothing changed, a scrub and a raw read of the same files,
// recompression. At the end the table of goals is printed with what was measured of it. Page caches are dropped before
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
	"time"
)

// steps are the columns of the table, in the order in which they are run.
var steps = []string{"full", "again", "day2", "sibling", "restore", "scrub", "rawread", "recompress", "tracked", "nothing", "ordinary"}

// A cost is what one step took.
type cost struct {
	Wall, CPU float64 // seconds; CPU of every process of the tool
	RSS       int64   // bytes: largest sum of the tool's processes' peaks
	House     int64   // of it Holdfast's daemon and agent, without the CLI
	Grown     int64   // bytes: growth of the repository
	Requests  int64   // to the S3 server, by its log; 0 without one
	Chunks    int64   // of Holdfast's pool, after the step
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

// options are what a bench was asked for.
type options struct {
	runs         int
	budget       time.Duration
	dir, images  string
	names        []string
	others       bool
	growthChunks string
	aged         int
}

func main() {
	var o options
	flag.IntVar(&o.runs, "n", 3, "runs of each tool; the table shows medians")
	flag.DurationVar(&o.budget, "budget", 0, "begin no further run that would not end within this time; 0: no bound")
	flag.StringVar(&o.dir, "dir", "bench/out", "folder for images and repositories, on the disk to be measured")
	flag.StringVar(&o.images, "images", "", "folder with vmA.raw, vmA-day2.raw, vmB.raw, and vmA-day3.raw for the ordinary day, to use instead of images made here")
	flag.BoolVar(&warm, "warm", false, "leave page caches alone")
	profile := flag.String("profile", "", "folder for CPU and heap profiles of Holdfast's programs")
	flag.BoolVar(&brief, "brief", false, "leave out recompression and scrub, which take longer than everything else")
	flag.BoolVar(&onlyGoals, "goals", false, "only tools and steps that the table of goals needs; recompression in the first run only")
	flag.BoolVar(&o.others, "others", false, "run the commands that measure the other rows of the table, too")
	flag.StringVar(&o.growthChunks, "growth", "10000,1000000,10000000", "numbers of chunks for bench/growth, with -others")
	flag.IntVar(&o.aged, "aged", 0, "measure only how fast a disk of 4 GiB is restored after so many increments, compared to its first day")
	names := flag.String("tools", "", "which tools, in which order (default cp,zstd,borg,restic,holdfast; with -goals restic-new,kopia,holdfast,holdfast+fast)")
	flag.Parse()
	if *profile != "" {
		_ = os.Setenv("HOLDFAST_PROFILE", *profile) // cannot fail for such a name
	}
	switch {
	case *names != "":
	case onlyGoals:
		*names = "restic-new,kopia,holdfast,holdfast+fast"
	default:
		*names = "cp,zstd,borg,restic,holdfast"
	}
	o.names = strings.Split(*names, ",")
	if err := bench(o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var background = context.Background()

// warm says that page caches stay as they are; brief, that recompression and scrub are left out; onlyGoals, that everything is which no goal needs.
var warm, brief, onlyGoals bool

func bench(o options) error {
	began := time.Now()
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	images := filepath.Join(dir, "images")
	if o.images != "" {
		if images, err = links(dir, o.images); err != nil {
			return err
		}
	} else if out, err := exec.Command("bash", "bench/images.sh", images).CombinedOutput(); err != nil {
		return fmt.Errorf("make the images: %w\n%s", err, out)
	}
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "bin")+"/", "./cmd/...").CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	if o.aged > 0 {
		return aged(&holdfast{bin: filepath.Join(dir, "bin")}, dir, images, o.aged)
	}
	want, err := hashFile(filepath.Join(images, "a2.raw"))
	if err != nil {
		return err
	}
	m := measures{results: results{}, others: map[string]float64{}}
	if o.others {
		if err := others(o.growthChunks, m.others); err != nil {
			return err
		}
	}
	if err := ordinary(images, m.others); err != nil {
		return err
	}
	done := 0
	for longest := time.Duration(0); done < o.runs && (o.budget == 0 || done == 0 || time.Since(began)+longest <= o.budget); done++ {
		start := time.Now()
		if err := round(o.names, dir, images, want, done, m.results); err != nil {
			return err
		}
		longest = max(longest, time.Since(start)-onlyOnce(m.results, done))
	}
	fmt.Printf("%d runs in %s.\n", done, time.Since(began).Round(time.Second))
	report(os.Stdout, o.names, m.results, images)
	printGoals(os.Stdout, m)
	return nil
}

// onlyOnce is what recompressing took in a run where no later one will do it.
func onlyOnce(all results, run int) (d time.Duration) {
	if !onlyGoals || run > 0 {
		return 0
	}
	for _, steps := range all {
		for _, c := range steps["recompress"] {
			d += time.Duration(c.Wall * float64(time.Second))
		}
	}
	return d
}

// round runs every tool once.
func round(names []string, dir, images, want string, run int, into results) error {
	for _, name := range names {
		t, err := newTool(name, dir)
		if err != nil {
			fmt.Printf("%s is left out: %v\n", name, err)
			continue
		}
		fmt.Fprintf(os.Stderr, "run %d: %s\n", run+1, name)
		r, err := series(t, filepath.Join(dir, "repo-"+strings.NewReplacer(":", "-", "+", "-").Replace(name)), images, want, run)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if into[name] == nil {
			into[name] = map[string][]cost{}
		}
		for step, c := range r {
			into[name][step] = append(into[name][step], c)
		}
	}
	return nil
}

// links gives images of another workload the names used here.
func links(dir, from string) (string, error) {
	to := filepath.Join(dir, "linked")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return "", err
	}
	for name, image := range map[string]string{"a.raw": "vmA.raw", "a2.raw": "vmA-day2.raw", "a3.raw": "vmA-day3.raw", "b.raw": "vmB.raw"} {
		_ = os.Remove(filepath.Join(to, name))
		src := filepath.Join(from, image)
		if _, err := os.Stat(src); os.IsNotExist(err) && name == "a3.raw" {
			continue // no ordinary day then
		}
		if err := os.Link(src, filepath.Join(to, name)); err != nil { // another file system
			if err := os.Symlink(src, filepath.Join(to, name)); err != nil {
				return "", err
			}
		}
	}
	return to, nil
}

// series runs all steps of one tool over a fresh repository.
func series(t tool, repo, images, want string, run int) (map[string]cost, error) {
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
	p, isPeer := t.(*peer)
	for _, s := range []struct{ step, image string }{{"full", "a"}, {"again", "a"}, {"day2", "a2"}, {"sibling", "b"}} {
		if onlyGoals && isPeer && p.name == "kopia" && (s.step == "again" || s.step == "sibling") {
			continue
		}
		before := folderBytes(repo)
		c, err := t.backup(s.step, filepath.Join(images, s.image+".raw"))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.step, err)
		}
		c.Grown, c.Requests, c.OK = folderBytes(repo)-before, requests(t), true
		r[s.step] = c
	}
	if onlyGoals && isPeer && p.name == "kopia" {
		return r, nil // no goal is against its restore
	}
	c, err := restored(t, repo, images, want)
	if err != nil {
		return nil, err
	}
	r["restore"] = c
	if h, ok := t.(*holdfast); ok {
		return r, h.own(repo, images, want, run, r)
	}
	return r, nil
}

// restored restores the second day and checks what came back.
func restored(t tool, repo, images, want string) (cost, error) {
	out := repo + ".out"
	defer os.RemoveAll(out)
	_ = os.RemoveAll(out)
	if err := os.MkdirAll(out, 0o755); err != nil {
		return cost{}, err
	}
	c, err := t.restore(filepath.Join(images, "a2.raw"), out)
	if err != nil {
		return c, fmt.Errorf("restore: %w", err)
	}
	got, err := hashLargest(out)
	if err != nil {
		return c, err
	}
	c.Requests = requests(t)
	if c.OK = got == want; !c.OK {
		return c, fmt.Errorf("the restored disk differs from the source")
	}
	return c, nil
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
