/* The colour jitter and the exposure of an image, in place; train/fused.py says what they are.

   A block of pixels, its channels apart, goes through every step while it lies in the cache; contrast alone
   has to see the whole image first. Each step ends in whole grey levels. All arithmetic is in integers of 16
   bits: eight or more in one instruction, and the same bits on every processor. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>

#define CHANNELS 3
#define BLOCK 256 /* pixels */
#define WHITE 255
#define FINE_BITS 6 /* within a step grey levels are in 1/64: -512 to 512 fit */
#define LEVEL (1 << FINE_BITS)
#define FACTOR (1 << 14) /* the factor 1 */
#define FACTOR_LIMIT 2.0
#define HUE_SEXTANT 30 /* steps of OpenCV's hue circle */

/* Compiled once more for processors with AVX2; which one runs is decided when the module is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

typedef int16_t Planes[CHANNELS][BLOCK];

typedef enum { LINEAR, SATURATE, TURN_HUE } Kind;

typedef struct {
    Kind kind;
    uint16_t factor; /* in 1 / FACTOR */
    int16_t rest;    /* offset in 1 / LEVEL; share of grey in 1 / INT16_MAX; direction of the hue: 1, -1 */
} Step;

typedef struct {
    Step steps[5]; /* as many as jitter and exposure have */
    int count;
    int first, last; /* of the passes; between them the channels of a block lie apart in the image, too */
} Pass;

static inline int16_t lesser(int16_t one, int16_t other) { return one < other ? one : other; }

static inline int16_t greater(int16_t one, int16_t other) { return one > other ? one : other; }

/* The upper half of a product: one instruction, also on processors without AVX2. */
static inline uint16_t upper(uint16_t one, uint16_t other) { return (uint16_t)((uint32_t)one * other >> 16); }

static inline int16_t signed_upper(int16_t one, int16_t other)
{
    return (int16_t)((int32_t)one * other >> 16);
}

/* level * factor, in 1 / LEVEL */
static inline int16_t scaled(int16_t level, uint16_t factor)
{
    return (int16_t)upper((uint16_t)(level * 256), factor);
}

/* Fractions are cut off. */
static inline int16_t whole(int16_t fine)
{
    return lesser(greater((int16_t)(fine >> FINE_BITS), 0), WHITE);
}

static inline int16_t luma(int16_t red, int16_t green, int16_t blue)
{
    /* 0.299, 0.587 and 0.114 in 1/65536 */
    uint16_t fine = (uint16_t)(upper((uint16_t)(red * 256), 19595) + upper((uint16_t)(green * 256), 38470) +
                               upper((uint16_t)(blue * 256), 7471));
    return (int16_t)((uint16_t)(fine + 128) >> 8);
}

static inline void linear(int16_t *plane, Step step)
{
    for (int i = 0; i < BLOCK; i++)
        plane[i] = whole((int16_t)(scaled(plane[i], step.factor) + step.rest));
}

static inline void saturate(Planes planes, Step step)
{
    int16_t *red = planes[0], *green = planes[1], *blue = planes[2];
    for (int i = 0; i < BLOCK; i++) {
        int16_t grey = luma(red[i], green[i], blue[i]);
        int16_t rest = (int16_t)(signed_upper((int16_t)(grey * 128), step.rest) + LEVEL / 2);
        red[i] = whole((int16_t)(scaled(red[i], step.factor) + rest));
        green[i] = whole((int16_t)(scaled(green[i], step.factor) + rest));
        blue[i] = whole((int16_t)(scaled(blue[i], step.factor) + rest));
    }
}

typedef struct {
    int16_t least, middle, most; /* of the channels */
    int16_t far;                 /* that a channel moves */
} Colour;

/* As _shift_hue of train/fused.py explains. */
static inline int16_t turned(int16_t level, int rises, Colour colour)
{
    int16_t mirrored = (int16_t)(2 * level - colour.middle);
    int16_t up = greater(level, (int16_t)(lesser(level, mirrored) + colour.far));
    int16_t down = lesser(level, (int16_t)(greater(level, mirrored) - colour.far));
    return rises ? lesser(up, colour.most) : greater(down, colour.least);
}

static inline void turn_hue(Planes planes, Step step)
{
    int16_t *red = planes[0], *green = planes[1], *blue = planes[2];
    for (int i = 0; i < BLOCK; i++) {
        int16_t r = red[i], g = green[i], b = blue[i];
        int16_t low = lesser(r, g), high = greater(r, g);
        Colour colour = {.least = lesser(low, b), .most = greater(high, b)};
        colour.middle = greater(low, lesser(high, b));
        colour.far = whole((int16_t)(scaled((int16_t)(colour.most - colour.least), step.factor) + LEVEL / 2));
        red[i] = turned(r, (int16_t)((b - g) * step.rest) > 0, colour);
        green[i] = turned(g, (int16_t)((r - b) * step.rest) > 0, colour);
        blue[i] = turned(b, (int16_t)((g - r) * step.rest) > 0, colour);
    }
}

/* Written out, for gcc makes vectors of no inner loop over the channels. */
static inline void split(const uint8_t *pixels, int count, Planes planes)
{
    int16_t *red = planes[0], *green = planes[1], *blue = planes[2];
    for (int i = 0; i < count; i++) {
        red[i] = pixels[3 * i];
        green[i] = pixels[3 * i + 1];
        blue[i] = pixels[3 * i + 2];
    }
}

static inline void merge(Planes planes, int count, uint8_t *pixels)
{
    const int16_t *red = planes[0], *green = planes[1], *blue = planes[2];
    for (int i = 0; i < count; i++) {
        pixels[3 * i] = (uint8_t)red[i];
        pixels[3 * i + 1] = (uint8_t)green[i];
        pixels[3 * i + 2] = (uint8_t)blue[i];
    }
}

static inline void load(const uint8_t *pixels, int count, Planes planes)
{
    for (int channel = 0; channel < CHANNELS; channel++)
        for (int i = 0; i < count; i++)
            planes[channel][i] = pixels[channel * count + i];
}

static inline void store(Planes planes, int count, uint8_t *pixels)
{
    for (int channel = 0; channel < CHANNELS; channel++)
        for (int i = 0; i < count; i++)
            pixels[channel * count + i] = (uint8_t)planes[channel][i];
}

static inline void change(Planes planes, Step step)
{
    if (step.kind == SATURATE)
        saturate(planes, step);
    else if (step.kind == TURN_HUE)
        turn_hue(planes, step);
    else
        for (int channel = 0; channel < CHANNELS; channel++)
            linear(planes[channel], step);
}

static inline uint32_t luma_sum(Planes planes, int count)
{
    uint32_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += (uint32_t)luma(planes[0][i], planes[1][i], planes[2][i]);
    return sum;
}

/* Returns the sum of the luma unless it is the last pass. */
FOR_EACH_PROCESSOR
static uint64_t run(const Pass *pass, uint8_t *pixels, Py_ssize_t total)
{
    Planes planes = {{0}};
    uint64_t sum = 0;
    for (Py_ssize_t left = total; left > 0; left -= BLOCK, pixels += CHANNELS * BLOCK) {
        int count = left < BLOCK ? (int)left : BLOCK;
        if (pass->first)
            split(pixels, count, planes);
        else
            load(pixels, count, planes);
        for (int step = 0; step < pass->count; step++)
            change(planes, pass->steps[step]);
        if (pass->last)
            merge(planes, count, pixels);
        else {
            sum += luma_sum(planes, count);
            store(planes, count, pixels);
        }
    }
    return sum;
}

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE, JITTER_STEPS };

typedef struct {
    int order[JITTER_STEPS];
    double brightness, contrast, saturation, gain, offset;
    int hue; /* steps of the circle */
} Change;

static int is_factor(double number) { return number >= 0 && number < FACTOR_LIMIT; }

static int fits(const Change *change)
{
    for (int place = 0; place < JITTER_STEPS; place++)
        if (change->order[place] < 0 || change->order[place] >= JITTER_STEPS)
            return 0;
    return is_factor(change->brightness) && is_factor(change->contrast) && is_factor(change->saturation) &&
           is_factor(change->gain) && change->offset >= -WHITE && change->offset <= WHITE &&
           WHITE * change->gain + change->offset < FACTOR_LIMIT * WHITE && change->hue >= -HUE_SEXTANT &&
           change->hue <= HUE_SEXTANT;
}

/* Rounded up, so that a product that is a whole number is not cut off to the one below. */
static uint16_t as_factor(double number) { return (uint16_t)ceil(number * FACTOR); }

static void add_linear(Pass *pass, double factor, double offset)
{
    if (factor != 1 || offset != 0)
        pass->steps[pass->count++] = (Step){LINEAR, as_factor(factor), (int16_t)lround(offset * LEVEL)};
}

static void add_saturation(Pass *pass, double factor)
{
    if (factor != 1)
        pass->steps[pass->count++] =
            (Step){SATURATE, as_factor(factor), (int16_t)lround((1 - factor) * INT16_MAX)};
}

static void add_hue(Pass *pass, int hue)
{
    if (hue != 0)
        pass->steps[pass->count++] =
            (Step){TURN_HUE, as_factor(abs(hue) / (double)HUE_SEXTANT), hue > 0 ? 1 : -1};
}

/* Runs without the GIL: no Python object may be touched. */
static void recolour(const Change *change, uint8_t *pixels, Py_ssize_t total)
{
    Pass pass = {.first = 1};
    for (int place = 0; place < JITTER_STEPS; place++) {
        int step = change->order[place];
        if (step == BRIGHTNESS)
            add_linear(&pass, change->brightness, 0);
        else if (step == SATURATION)
            add_saturation(&pass, change->saturation);
        else if (step == HUE)
            add_hue(&pass, change->hue);
        else if (change->contrast != 1) {
            double mean = (double)run(&pass, pixels, total) / (double)total;
            pass = (Pass){.first = 0};
            add_linear(&pass, change->contrast, (1 - change->contrast) * mean);
        }
    }
    add_linear(&pass, change->gain, change->offset);
    pass.last = 1;
    if (pass.count > 0)
        run(&pass, pixels, total);
}

PyDoc_STRVAR(recolour_doc,
             "recolour(pixels, order, brightness, contrast, saturation, hue, gain, offset)\n\n"
             "Change RGB pixels: brightness 0, contrast 1, saturation 2 and hue 3 in the given order, then\n"
             "gain * level + offset. Factors are below 2; hue is in steps of 1/180 of the circle, at most\n"
             "30 either way; offset is in grey levels. Raises ValueError for other numbers.");

static PyObject *recolour_method(PyObject *self, PyObject *args)
{
    Py_buffer pixels;
    Change change;
    int *order = change.order;
    (void)self;

    if (!PyArg_ParseTuple(args, "w*(iiii)dddidd", &pixels, order, order + 1, order + 2, order + 3,
                          &change.brightness, &change.contrast, &change.saturation, &change.hue, &change.gain,
                          &change.offset))
        return NULL;
    int good = fits(&change) && pixels.len > 0 && pixels.len % CHANNELS == 0;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        recolour(&change, pixels.buf, pixels.len / CHANNELS);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&pixels);
    if (!good)
        return PyErr_Format(PyExc_ValueError, "no RGB pixels, or a change that is out of range");
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"recolour", recolour_method, METH_VARARGS, recolour_doc},
                                {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "train._pixels", .m_methods = methods};

PyMODINIT_FUNC PyInit__pixels(void) { return PyModule_Create(&module); }
