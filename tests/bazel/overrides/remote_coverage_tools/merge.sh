#!/bin/bash
# Concatenates the coverage data that it finds into --output_file.
set -eu
output=
inputs=()
for argument in "$@"; do
  case "$argument" in
    --output_file=*) output=${argument#*=} ;;
    --coverage_dir=*)
      while IFS= read -r -d '' file; do inputs+=("$file"); done \
        < <(find "${argument#*=}" -type f \( -name '*.dat' -o -name '*.gcov' -o -name '*.gcov.json.gz' \) -print0)
      ;;
    --reports_file=*)
      while IFS= read -r file; do inputs+=("$file"); done < "${argument#*=}"
      ;;
  esac
done
[ -n "$output" ] || { echo "merge.sh: no --output_file" >&2; exit 1; }
cat /dev/null ${inputs[@]+"${inputs[@]}"} > "$output"
