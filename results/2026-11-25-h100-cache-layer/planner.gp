# gnuplot planner.gp draws planner.svg from planner.dat, in this folder.
set terminal svg size 640,400 font "sans-serif,13"
set output "planner.svg"
set datafile missing "nan"
set logscale xy
set xrange [0.04:60]
set yrange [50:4000]
set xlabel "Rate of the host link, GB/s (throttled)"
set ylabel "TTFT of a hit of 20,000 tokens, ms"
set key top right
set grid
plot "planner.dat" using 1:2 with linespoints title "compute: the hit is not used", \
     "" using 1:3 with linespoints title "load", \
     "" using 1:4 with linespoints lw 2 title "auto: load from the back, compute from the front"
