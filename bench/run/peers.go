//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func newTool(name, dir string) (tool, error) {
	product, chunking, _ := strings.Cut(name, ":")
	product, compression, _ := strings.Cut(product, "+")
	if kind, ok := strings.CutPrefix(product+"+"+compression, "holdfast-"); ok { // 4+2 is no mode of compression
		if kind = strings.TrimSuffix(kind, "+"); !poolKinds[kind] {
			return nil, fmt.Errorf("no kind of pool %q", kind)
		}
		return &holdfast{bin: filepath.Join(dir, "bin"), kind: kind, chunking: chunking}, nil
	}
	if product == "holdfast" {
		return &holdfast{bin: filepath.Join(dir, "bin"), chunking: chunking, compression: compression}, nil
	}
	program, bucket := strings.CutSuffix(name, "-s3")
	if bucket && program != "restic" && program != "restic-new" {
		return nil, fmt.Errorf("%s in a bucket is not known here", program)
	}
	if _, err := exec.LookPath(program); err != nil {
		return nil, err
	}
	return &peer{name: program, bucket: bucket}, nil
}

// A peer is a program that runs once for each step.
type peer struct {
	name, repo string
	bucket     bool // restic's repository is in one
	s3         *gateway
}

// gateway is the server that the tool uses, nil if none.
func (p *peer) gateway() *gateway { return p.s3 }

// restic returns a command line of restic's that reaches the repository.
func (p *peer) restic(args ...string) []string {
	if p.s3 != nil {
		return append([]string{"-q", "-r", "s3:" + p.s3.URL + "/" + p.s3.a[0], "--cacert", p.s3.ca}, args...)
	}
	return append([]string{"-q", "-r", p.repo}, args...)
}

// measure runs a command to its end and takes the system's own account of it and its children.
func measure(env []string, dir, name string, args ...string) (cost, error) {
	dropCaches()
	cmd := exec.Command(name, args...)
	cmd.Env, cmd.Dir = append(os.Environ(), env...), dir
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return cost{}, fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	c := cost{Wall: time.Since(start).Seconds(), CPU: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}
	if ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		c.RSS = ru.Maxrss << 10
	}
	return c, nil
}

// dropCaches makes each step read from the disk; without the right to do so the steps run on warm caches, all alike.
func dropCaches() {
	if warm {
		return
	}
	syscall.Sync()
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200)
}

func blocks(info os.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

func (p *peer) env() []string {
	keys := []string{}
	if p.s3 != nil {
		keys = []string{"AWS_ACCESS_KEY_ID=" + p.s3.AccessKey, "AWS_SECRET_ACCESS_KEY=" + p.s3.SecretKey}
	}
	return append(keys, "RESTIC_PASSWORD=x", "KOPIA_PASSWORD=xxxxxxxx", "KOPIA_CHECK_FOR_UPDATES=false", "BORG_PASSPHRASE=x", "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes",
		"BORG_BASE_DIR="+p.repo+".cache", "RESTIC_CACHE_DIR="+p.repo+".cache")
}

func (p *peer) start(dir string) error {
	p.repo = dir
	_ = os.RemoveAll(dir + ".cache")
	var err error
	if p.bucket {
		if p.s3, err = startGateway(dir, "bench"); err != nil {
			return err
		}
	}
	switch p.name {
	case "restic", "restic-new":
		_, err = measure(p.env(), "", p.name, p.restic("init", "--repository-version", "2")...)
	case "kopia":
		if err = os.MkdirAll(dir+".cache", 0o755); err == nil {
			_, err = p.kopia("repository", "create", "filesystem", "--path", dir, "--cache-directory", dir+".cache/c")
		}
		if err == nil {
			_, err = p.kopia("policy", "set", "--global", "--compression", "zstd-fastest", "--max-parallel-file-reads", "2")
		}
	case "borg":
		_, err = measure(p.env(), "", "borg", "init", "-e", "repokey-blake2", dir+"/r")
	}
	return err
}

func (p *peer) kopia(args ...string) (cost, error) {
	return measure(p.env(), "", "kopia", append([]string{"--config-file", p.repo + ".cache/k", "--log-dir", p.repo + ".cache/l"}, args...)...)
}

// kopiaObject returns the object of the snapshot with a tag.
func (p *peer) kopiaObject(tag string) (string, error) {
	cmd := exec.Command("kopia", "--config-file", p.repo+".cache/k", "--log-dir", p.repo+".cache/l", "snapshot", "list", "--json", "--tags", "t:"+tag)
	cmd.Env = append(os.Environ(), p.env()...)
	out, err := cmd.Output()
	if err != nil {
		return "", err
	}
	var list []struct {
		RootEntry struct {
			Obj string `json:"obj"`
		} `json:"rootEntry"`
	}
	if err := json.Unmarshal(out, &list); err != nil || len(list) == 0 {
		return "", fmt.Errorf("no snapshot %q: %v", tag, err)
	}
	return list[len(list)-1].RootEntry.Obj, nil
}

func (p *peer) stop() {
	_ = os.RemoveAll(p.repo + ".cache")
	if p.s3 != nil {
		p.s3.stop()
		p.s3 = nil
	}
}

// source gives every image the same path, as one disk of one machine has.
func (p *peer) source(image string) string {
	disk := filepath.Join(filepath.Dir(image), "disk.raw")
	_ = os.Remove(disk)
	_ = os.Link(image, disk)
	return disk
}

func (p *peer) backup(step, image string) (cost, error) {
	src := p.source(image)
	switch p.name {
	case "cp":
		return measure(nil, "", "cp", "--sparse=always", src, filepath.Join(p.repo, step))
	case "zstd":
		return measure(nil, "", "zstd", "-q", "-f", "-1", "-T2", src, "-o", filepath.Join(p.repo, step))
	case "borg":
		return measure(p.env(), "", "borg", "create", "--files-cache", "disabled", p.repo+"/r::"+step, src)
	case "restic", "restic-new":
		return measure(p.env(), "", p.name, p.restic("backup", "--force", "--tag", step, src)...)
	case "kopia":
		return p.kopia("snapshot", "create", "--force-hash", "100", "--no-progress", "--tags", "t:"+step, src)
	}
	return cost{}, fmt.Errorf("no peer %q", p.name)
}

func (p *peer) restore(_, out string) (cost, error) {
	switch p.name {
	case "cp":
		return measure(nil, "", "cp", "--sparse=always", filepath.Join(p.repo, "day2"), out+"/o")
	case "zstd":
		return measure(nil, "", "zstd", "-q", "-d", "--sparse", filepath.Join(p.repo, "day2"), "-o", out+"/o")
	case "borg":
		return measure(p.env(), out, "borg", "extract", "--sparse", p.repo+"/r::day2")
	case "restic":
		return measure(p.env(), "", p.name, p.restic("restore", "--tag", "day2", "latest", "--target", out)...)
	case "restic-new":
		return measure(p.env(), "", p.name, p.restic("restore", "--sparse", "--tag", "day2", "latest", "--target", out)...)
	case "kopia":
		obj, err := p.kopiaObject("day2")
		if err != nil {
			return cost{}, err
		}
		return p.kopia("snapshot", "restore", "--no-progress", "--write-sparse-files", "--parallel", "4", obj, filepath.Join(out, "o"))
	}
	return cost{}, fmt.Errorf("no peer %q", p.name)
}
