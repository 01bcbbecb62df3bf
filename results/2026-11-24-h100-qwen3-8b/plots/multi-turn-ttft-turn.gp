# gnuplot multi-turn-ttft-turn.gp makes multi-turn-ttft-turn.svg from multi-turn-ttft-turn.dat
dat = 'multi-turn-ttft-turn.dat'
out = 'multi-turn-ttft-turn.svg'
n = 2
array label[2] = ['Without KV cache layer', 'With KV cache layer (DRAM)']

# Shared by all plots. The script of a plot sets before this: dat and out (names of its files), n (number of series) and
# label (array of their names). The colours are those of Okabe and Ito, which colour-blind readers can tell apart. The
# colour `ink` of lines and text becomes the colour of the page when the picture is put into report.html.
set terminal svg size 720,400 dynamic noenhanced font 'sans-serif,13'
array colour[7] = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7F7F7F']
ink = '#333333'
set output out
set encoding utf8
set border 3 lc rgb ink lw 1
set tics nomirror textcolor rgb ink
set grid lc rgb '#999999' lw 0.4 dt (1,3)
set xlabel textcolor rgb ink
set ylabel textcolor rgb ink
set key above left horizontal reverse Left textcolor rgb ink noautotitle

# TTFT by turn of the conversation. A longer conversation has a longer prefix that a cache can hold.
# Data: a block per row; columns: turn, median, 10th percentile, 90th percentile (ms).
set xlabel 'turn of the conversation' textcolor rgb ink
set ylabel 'time to first token (ms)' textcolor rgb ink
set yrange [0:*]
set xtics 1
set style fill transparent solid 0.18 noborder
plot for [i=1:n] dat index i-1 using 1:3:4 with filledcurves lc rgb colour[i], \
     for [i=1:n] dat index i-1 using 1:2 with linespoints lw 2 pt 7 ps 0.5 lc rgb colour[i] title label[i]
