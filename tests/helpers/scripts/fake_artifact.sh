#!/bin/sh
# In the place of Python: notes what the artifact is asked to do, and fails where the file `broken` says so.
shift 2
echo "$*" >>log
case $1 in
    alone) shift; exec "$@" ;;
    run) word=$(basename "$2" .ipynb); mkdir -p "$4" ;;
    *) word=$1 ;;
esac
echo "$word" | grep -qxf broken && exit 1
[ "$word" != measure_live ] || [ ! -e slow ] || sleep 30
[ "$1" != run ] || touch "$4/$word.ipynb"
