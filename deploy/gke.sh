#!/usr/bin/env bash
# Build both images, push them, and apply an overlay to a GKE cluster.
#
#   IMAGE=europe-north1-docker.pkg.dev/PROJECT/REPOSITORY/consilium:1.0 CLUSTER=NAME LOCATION=europe-north1 \
#       deploy/gke.sh [--dry-run]
#
# IMAGE names both: consilium-engine:1.0 and consilium-dashboard:1.0 come of it. OVERLAY (default one-cluster) is a
# folder of deploy/kubernetes/overlays, PROJECT the cluster's where it is not the registry's. --dry-run shows what would
# be applied and run, and changes nothing.
set -euo pipefail

fail() {
    printf 'gke.sh: %s\n' "$*" >&2
    exit 2
}

dry=false
for argument in "$@"; do
    case $argument in
        --dry-run) dry=true ;;
        *) fail "$argument: not an option; there is --dry-run" ;;
    esac
done

for tool in docker gcloud kubectl; do
    command -v "$tool" >/dev/null || fail "$tool is not installed, or not on the PATH"
done

pattern='^([a-z0-9-]+-docker\.pkg\.dev)/([a-z0-9.:-]+)/([a-z0-9_-]+(/[a-z0-9._-]+)+):([A-Za-z0-9_][A-Za-z0-9._-]*)$'
[[ ${IMAGE:-} =~ $pattern ]] ||
    fail "IMAGE='${IMAGE:-}': set it like europe-north1-docker.pkg.dev/PROJECT/REPOSITORY/consilium:1.0"
registry=${BASH_REMATCH[1]}
project=${PROJECT:-${BASH_REMATCH[2]}}
tag=${BASH_REMATCH[5]}
repository=${IMAGE%:*}
[[ $tag != latest ]] || fail "IMAGE: ':latest' names no version; give a tag that stays what it is"
[[ -n ${CLUSTER:-} ]] || fail "CLUSTER is not set: the cluster's name"
[[ -n ${LOCATION:-} ]] || fail "LOCATION is not set: the cluster's region or zone"

cd "$(dirname "$0")/.."
overlay=${OVERLAY:-one-cluster}
[[ -f deploy/kubernetes/overlays/$overlay/kustomization.yaml ]] ||
    fail "OVERLAY=$overlay: there is no such folder in deploy/kubernetes/overlays"
context=gke_${project}_${LOCATION}_${CLUSTER}
kube=(kubectl --context "$context" --namespace consilium)

run() {
    if $dry; then
        printf '+ %s\n' "$*" >&2
    else
        "$@"
    fi
}

# The overlay with the images' names in it, made beside the project so that nothing in it changes.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R deploy/kubernetes/base deploy/kubernetes/overlays "$work"
cat >"$work/kustomization.yaml" <<YAML
resources: [overlays/$overlay]
images:
  - {name: consilium-engine, newName: "$repository-engine", newTag: "$tag"}
  - {name: consilium-dashboard, newName: "$repository-dashboard", newTag: "$tag"}
YAML
kubectl kustomize "$work" >"$work/all.yaml" || fail "overlay $overlay does not render; kubectl says why above"

# What would fail after the long build is asked before it.
run gcloud container clusters get-credentials "$CLUSTER" --location "$LOCATION" --project "$project"
if ! $dry; then
    while read -r secret; do
        "${kube[@]}" get secret "$secret" -o name >/dev/null ||
            fail "secret $secret cannot be read in the cluster; make it with:" \
                "kubectl --context $context apply --server-side -k deploy/kubernetes/secrets (docs/deploy.md)"
    done < <(sed -n 's/^ *secretName: *//p' "$work/all.yaml" | sort -u)
    if grep -q '^kind: Job$' "$work/all.yaml"; then
        there=$("${kube[@]}" get job coordinator --ignore-not-found -o 'jsonpath={.spec.template.spec.containers[0].image}')
        [[ -z $there || $there == "$repository-engine:$tag" ]] ||
            fail "a coordinator of $there is there, at work or done, and a job cannot change; once its training is" \
                "over: kubectl --context $context -n consilium delete job coordinator"
    fi
fi

images=()
for part in engine dashboard; do
    grep -qF "image: $repository-$part:$tag" "$work/all.yaml" || continue # a hospital alone has no dashboard
    images+=("$repository-$part:$tag")
    run docker build --platform linux/amd64 --file "deploy/$part.Dockerfile" --tag "$repository-$part:$tag" .
done
run gcloud auth configure-docker "$registry" --quiet
for image in "${images[@]}"; do
    run docker push "$image"
done

if $dry; then
    cat "$work/all.yaml"
fi
run "${kube[@]}" apply --filename "$work/all.yaml"
run "${kube[@]}" wait --for=condition=Available deployment --all --timeout=15m
