/* A region of a JPEG, decoded into a buffer of the caller; train/decode.py decides which, and when.

   Of the rows above the region libjpeg-turbo decodes the entropy code alone, of those below nothing, and of
   the columns beside it no samples. The data is not trusted: every way out frees what was taken. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#define ROWS 16 /* asked for at once: one call for each row costs a tenth of the time of a small photo */
#define MAX_SCANS 200 /* encoders write about ten; each more may cost a pass over a photo of any size */

typedef struct {
    JDIMENSION left, top, width, height; /* in pixels of the scaled photo */
} Region;

typedef enum { DECODED, NOT_FOR_US, TOO_MANY_SCANS } Outcome;

typedef struct {
    struct jpeg_error_mgr base; /* first: libjpeg hands it back as this */
    jmp_buf leave;
    Outcome outcome;
} Errors;

static void leave(j_common_ptr codec, Outcome outcome)
{
    Errors *errors = (Errors *)codec->err;
    errors->outcome = outcome;
    longjmp(errors->leave, 1);
}

static void on_error(j_common_ptr codec) { leave(codec, NOT_FOR_US); }

static void on_message(j_common_ptr codec, int level)
{
    if (level < 0)
        codec->err->num_warnings++; /* damaged data: libjpeg goes on, with grey where nothing is known */
}

static void on_progress(j_common_ptr codec)
{
    if (((j_decompress_ptr)codec)->input_scan_number > MAX_SCANS)
        leave(codec, TOO_MANY_SCANS);
}

static int has_three_colours_or_grey(j_decompress_ptr codec)
{
    J_COLOR_SPACE space = codec->jpeg_color_space;
    return space == JCS_YCbCr || space == JCS_RGB || space == JCS_GRAYSCALE;
}

static int lies_inside(const Region *region, j_decompress_ptr codec)
{
    return region->width > 0 && region->height > 0 && region->left < codec->output_width &&
           region->width <= codec->output_width - region->left && region->top < codec->output_height &&
           region->height <= codec->output_height - region->top;
}

/* Leaves out the columns beside the region; returns the first that is decoded. One block more on both sides,
   since the upsampling of the colours looks at neighbours. */
static JDIMENSION crop_columns(j_decompress_ptr codec, const Region *region)
{
    JDIMENSION block = (JDIMENSION)(codec->max_h_samp_factor * codec->min_DCT_scaled_size);
    JDIMENSION first = region->left > block ? region->left - block : 0;
    JDIMENSION columns = codec->output_width - first;
    JDIMENSION wanted = region->left - first + region->width + block;
    if (wanted < columns)
        columns = wanted;
    if (columns < codec->output_width)
        jpeg_crop_scanline(codec, &first, &columns); /* moves `first` to the start of a block */
    return first;
}

static void read_rows(j_decompress_ptr codec, const Region *region, unsigned char *out)
{
    size_t row_bytes = (size_t)region->width * 3;
    JDIMENSION first = crop_columns(codec, region);
    size_t skipped_bytes = (size_t)(region->left - first) * 3;
    JDIMENSION width = codec->output_width;
    JSAMPARRAY rows = codec->mem->alloc_sarray((j_common_ptr)codec, JPOOL_IMAGE, width * 3, ROWS);
    if (first > region->left || region->left - first + region->width > width ||
        jpeg_skip_scanlines(codec, region->top) != region->top)
        leave((j_common_ptr)codec, NOT_FOR_US);
    for (JDIMENSION left = region->height; left > 0;) {
        JDIMENSION count = jpeg_read_scanlines(codec, rows, left < ROWS ? left : ROWS);
        if (count == 0)
            leave((j_common_ptr)codec, NOT_FOR_US);
        for (JDIMENSION y = 0; y < count; y++, out += row_bytes)
            memcpy(out, rows[y] + skipped_bytes, row_bytes);
        left -= count;
    }
}

/* Runs without the GIL: no Python object may be touched. */
static Outcome decode_region(const unsigned char *data, size_t size, int eighths, const Region *region,
                             unsigned char *out)
{
    struct jpeg_decompress_struct codec = {0};
    struct jpeg_progress_mgr progress = {.progress_monitor = on_progress};
    Errors errors = {.outcome = DECODED};

    codec.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = on_error;
    errors.base.emit_message = on_message;
    if (setjmp(errors.leave) == 0) {
        jpeg_create_decompress(&codec);
        codec.progress = &progress;
        jpeg_mem_src(&codec, data, (unsigned long)size);
        jpeg_read_header(&codec, TRUE);
        if (!has_three_colours_or_grey(&codec))
            on_error((j_common_ptr)&codec);
        codec.out_color_space = JCS_RGB;
        codec.scale_num = (unsigned)eighths;
        codec.scale_denom = 8;
        jpeg_start_decompress(&codec);
        if (!lies_inside(region, &codec) || codec.output_components != 3)
            on_error((j_common_ptr)&codec);
        read_rows(&codec, region, out);
        if (codec.progressive_mode && errors.base.num_warnings > 0)
            errors.outcome = NOT_FOR_US; /* each release guesses missing coefficients in its own way */
    }
    jpeg_destroy_decompress(&codec);
    return errors.outcome;
}

PyDoc_STRVAR(decode_doc,
             "decode(data, eighths, left, top, width, height, out) -> bool\n\n"
             "Write RGB pixels of a region of `data`, decoded at eighths/8 of its size, to `out`:\n"
             "height * width * 3 bytes. False: not decoded, or not exactly; `out` is then undefined.\n"
             "Raises ValueError for sizes that do not fit `out` and for more scans than encoders write.");

static PyObject *decode(PyObject *self, PyObject *args)
{
    Py_buffer data, out;
    int eighths;
    unsigned left, top, width, height;
    Outcome outcome = NOT_FOR_US;
    (void)self;

    if (!PyArg_ParseTuple(args, "y*iIIIIw*", &data, &eighths, &left, &top, &width, &height, &out))
        return NULL;
    int fits = eighths >= 1 && eighths <= 8 && width <= JPEG_MAX_DIMENSION && height <= JPEG_MAX_DIMENSION &&
               (unsigned long long)width * height * 3 == (unsigned long long)out.len;
    if (fits) {
        Region region = {left, top, width, height};
        Py_BEGIN_ALLOW_THREADS
        outcome = decode_region(data.buf, (size_t)data.len, eighths, &region, out.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "%u x %u pixels at %d/8 do not fit the buffer", width, height,
                            eighths);
    if (outcome == TOO_MANY_SCANS)
        return PyErr_Format(PyExc_ValueError, "more than %d scans", MAX_SCANS);
    return PyBool_FromLong(outcome == DECODED);
}

static PyMethodDef methods[] = {{"decode", decode, METH_VARARGS, decode_doc}, {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "train._jpeg", .m_methods = methods};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModule_Create(&module); }
