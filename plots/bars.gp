# A bar per row of the table, on a y axis from 0. The line on a bar spans the smallest and the largest run.
# Data: a block per arm; columns: name of the row, mean, smallest, largest. Variable: unit (label of the y axis).
set ylabel unit textcolor rgb ink
set yrange [0:*]
set style fill solid 0.85 noborder
set boxwidth 0.8/n
set grid noxtics
set xtics scale 0
plot for [i=1:n] dat index i-1 using ($0+(i-(n+1)/2.0)*0.8/n):2 with boxes lc rgb colour[i] title label[i], \
     for [i=1:n] dat index i-1 using ($0+(i-(n+1)/2.0)*0.8/n):3:(0):($4-$3) with vectors nohead lw 1.5 lc rgb ink, \
     dat index 0 using 0:(NaN):xtic(1) with points
