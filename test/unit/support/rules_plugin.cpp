// A plug-in whose one function has a frame of PLUGIN_FRAME bytes, at the same place whatever that is: it calls what it
// is given.

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

asm(R"(
.pushsection .text
.globl plugin_call
.type plugin_call, @function
plugin_call:
    .cfi_startproc
    {disp32} lea -)" TEXT(PLUGIN_FRAME) R"((%rsp), %rsp
    .cfi_adjust_cfa_offset )" TEXT(PLUGIN_FRAME) R"(
    call *%rdi
    {disp32} lea )" TEXT(PLUGIN_FRAME) R"((%rsp), %rsp
    .cfi_adjust_cfa_offset -)" TEXT(PLUGIN_FRAME) R"(
    ret
    .cfi_endproc
.size plugin_call, . - plugin_call
.popsection
)");
