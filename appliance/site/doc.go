// Package site is configuration as code: a site as one YAML file. It owns the file's form, the comparison of a file with an appliance, and the
// order in which an appliance is made to agree with a file. What the parts of a site are (pools, hosts, jobs and so on) it does not
// know: each is a Part that the assembly hands in.
//
// A file has sections. A section that is not in the file is left alone; in one that is there, what the file does not name is removed.
// Reading and comparing change nothing. Applying goes one step after the other and stops at the first that fails; what was done stays, and
// applying again goes on from there, since it compares anew. The package keeps nothing, so a crash leaves what the steps left.
//
// It must not import anything of the house but the ground floor. go.yaml.in/yaml has its home here.
package site
