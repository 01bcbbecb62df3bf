# Turns plots/*.gp into one C file, so that an installed program carries its scripts:
# cmake -DOUT=FILE.c -DSCRIPTS=a.gp,b.gp -P embed.cmake
string(REPLACE "," ";" SCRIPTS "${SCRIPTS}")
set(text "/* Made from the scripts in plots/ by plots/embed.cmake. */\n#include \"harness/plot.h\"\n\n#include <string.h>\n\n")
set(table "")
foreach(file ${SCRIPTS})
  get_filename_component(name ${file} NAME_WE)
  string(MAKE_C_IDENTIFIER ${name} id)
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(APPEND text "static const char gp_${id}[] = {${bytes}0};\n")
  string(APPEND table "    if (!strcmp(name, \"${name}\"))\n        return gp_${id};\n")
endforeach()
file(WRITE ${OUT} "${text}\nconst char *hz_plot_script(const char *name)\n{\n${table}    return NULL;\n}\n")
